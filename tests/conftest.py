"""What several test files need: the real data beside the checkout, where it is there."""

import fcntl
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import api
from pipeline.api import Paths
from pipeline.commands.output import ROOTS

for name in ROOTS:  # remarks are made, whoever listens
    logging.getLogger(name).setLevel(logging.INFO)

SHARED = Path(__file__).resolve().parents[2] / "shared"


def shared(relative: str) -> Path:
    """A real file or folder of the test data; the test is skipped where the data is absent."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"needs the real data at {path}")
    return path


@pytest.fixture(scope="session")
def cifar10_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the complete CIFAR-10 in its official binary layout."""
    folder = tmp_path_factory.mktemp("data")
    script = shared("data/unpack_cifar10.py")
    subprocess.run([sys.executable, str(script), str(folder)], check=True)
    return folder


@pytest.fixture(scope="session")
def ucf101_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the real UCF101 clips that are here have been prepared, once for all workers."""
    data, base = shared("data"), tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "ucf101"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        api.prepare("ucf101", paths=Paths(data, folder / "stores"), allow_missing=True)
    return folder / "stores"
