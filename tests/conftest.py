"""What several test files need: the real data beside the checkout, where it is there."""

import fcntl
import gc
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

# torch would start Pythons of its own to compile in, which takes longer than a few small kernels do
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import pytest

from pipeline.commands.output import ROOTS

if TYPE_CHECKING:
    from pipeline.api import Paths

gc.disable()  # while all is imported, a fifth of whose time it takes, and until the first test
for name in ROOTS:  # remarks are made, whoever listens
    logging.getLogger(name).setLevel(logging.INFO)

SHARED = Path(__file__).resolve().parents[2] / "shared"
LONG = (
    "test_docs",
    "test_examples",
    "test_pipeline_ray",
    "test_pipeline_reproduce_graph",
    "test_pipeline_resume",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of many seconds come first, so that no worker does one last while the others wait."""
    items.sort(key=lambda item: item.path.stem not in LONG)


def pytest_collection_finish() -> None:
    """From here on Python's collector looks through what tests make, not through torch as well, and seldom
    through all of it: that took a tenth of the time.
    """
    gc.freeze()
    gc.set_threshold(20_000, 10, 20)
    gc.enable()


def pytest_unconfigure() -> None:
    """At its end, Python looks for what was never freed, and some libraries print what they find."""
    gc.unfreeze()


def shared(relative: str) -> Path:
    """A real file or folder of the test data; the test is skipped where the data is absent."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"needs the real data at {path}")
    return path


# fixtures import what they need: the process that hands the tests to the workers runs none


@pytest.fixture(scope="module", autouse=True)
def no_needless_waiting(request: pytest.FixtureRequest) -> Iterator[None]:
    """Shorter ways than those that this file of tests is not about."""
    from shortcuts import shortcuts

    with shortcuts(about=request.node.path.stem):
        yield


@pytest.fixture(scope="module")
def narrow() -> Iterator[None]:
    """Named networks are narrow in this file of tests, which is not about them."""
    from narrow import narrow_networks

    with narrow_networks():
        yield


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
def ucf101(tmp_path_factory: pytest.TempPathFactory) -> "Paths":
    """Every fourth of the real UCF101 clips that are here, prepared once for all workers."""
    from pipeline import api
    from pipeline.api import Paths

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
