"""What several test files need: the real data beside the checkout, where it is there."""

import fcntl
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# torch would start Pythons of its own to compile in, which takes longer than a few small kernels do
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import pytest
from matplotlib.figure import Figure
from narrow import narrow_networks
from programs import open_once

from pipeline import api
from pipeline.api import Paths
from pipeline.commands.output import ROOTS
from pipeline.runtime.kernels import wrong_layers
from pipeline.train import confusion, kernel_check
from sskt.sources import exported_program

for name in ROOTS:  # remarks are made, whoever listens
    logging.getLogger(name).setLevel(logging.INFO)

SHARED = Path(__file__).resolve().parents[2] / "shared"


def shared(relative: str) -> Path:
    """A real file or folder of the test data; the test is skipped where the data is absent."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"needs the real data at {path}")
    return path


@pytest.fixture(scope="module", autouse=True)
def no_needless_waiting(request: pytest.FixtureRequest) -> Iterator[None]:
    """Waiting for the disk, opening a program or looking at a network's kernels again, drawing a confusion
    matrix: only in the files that are about it.
    """
    about = request.node.path.stem
    with pytest.MonkeyPatch.context() as patch:
        if not about.startswith("test_cache_"):
            patch.setattr(os, "fsync", lambda _descriptor: None)
        if about != "test_sskt_programs":
            patch.setattr(exported_program, "open_archive", open_once)
        if "kernels" not in about:
            patch.setattr(kernel_check, "wrong_layers", wrong_layers_once)
        if about not in ("test_pipeline_titles", "test_pipeline_video_train", "test_sskt_names"):
            patch.setattr(confusion, "draw_confusion", lambda *_: Figure(figsize=(1, 1)))
        yield


@pytest.fixture(scope="module")
def narrow() -> Iterator[None]:
    """Named networks are narrow in this file of tests, which is not about them."""
    with narrow_networks():
        yield


_kernels: dict[tuple[object, ...], object] = {}


def wrong_layers_once(networks, shape, how, *, learns, plain=(), kept_in):
    """`wrong_layers`; networks of the same layers as some before are not looked at again."""
    layers = [(prefix, repr(net), *map(type, net.modules())) for prefix, net in networks.items()]
    key = (*layers, shape, how, learns, plain)
    if key not in _kernels:
        _kernels[key] = wrong_layers(networks, shape, how, learns=learns, plain=plain, kept_in=kept_in)
    return _kernels[key]


@contextmanager
def for_all_workers(tmp_path_factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """A folder that the workers of this session share, for one of them at a time."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / name
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


@pytest.fixture(scope="session")
def cifar10_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the complete CIFAR-10 in its official binary layout, once for all workers."""
    script = shared("data/unpack_cifar10.py")
    with for_all_workers(tmp_path_factory, "cifar10") as folder:
        if not (folder / "cifar-10-batches-bin" / "batches.meta.txt").exists():  # what it writes last
            subprocess.run([sys.executable, str(script), str(folder)], check=True)
    return folder


@pytest.fixture(scope="session")
def ucf101(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """Every fourth of the real UCF101 clips that are here, prepared once for all workers."""
    there = shared("data/ucf101")
    with for_all_workers(tmp_path_factory, "ucf101") as folder:
        paths = Paths(folder / "data", folder / "stores")
        if not paths.data_dir.exists():
            shutil.copytree(there / "ucfTrainTestlist", folder / "data" / "ucf101" / "ucfTrainTestlist")
            for clip in sorted((there / "UCF-101").rglob("*.avi"))[::4]:
                copy = folder / "data" / "ucf101" / clip.relative_to(there)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(clip, copy)
        api.prepare("ucf101", paths=paths, allow_missing=True)
    return paths
