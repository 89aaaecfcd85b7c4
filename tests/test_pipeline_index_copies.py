"""A target's index beside stores on a URL: a fresh machine takes over what another checked, after a look."""

import os
import shutil
import uuid

import numpy as np
import pytest
from listening import Remarks
from PIL import Image

from pipeline.data import open_dataset
from pipeline.data.datasets import images
from pipeline.runtime import Paths


@pytest.fixture
def machine(tmp_path):
    """Paths of a machine that has just been started, with the images of all and stores of all."""
    url = f"memory://{uuid.uuid4().hex}/stores"
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for i in range(90):
            folder = tmp_path / "images" / split / f"class{i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (8, 9, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.bmp")
            os.utime(folder / f"{i}.bmp", (1e9, 1e9))  # as copies have that keep, or level, the time
    return lambda name: Paths(tmp_path / name, url)


@pytest.fixture
def n_read(monkeypatch):
    """Counts the files read, in a list of one."""
    count, read = [0], images.FileImages.read

    def counting(self, row):
        count[0] += 1
        return read(self, row)

    monkeypatch.setattr(images.FileImages, "read", counting)
    return count


def opened(paths, tmp_path):
    return open_dataset(f"imagefolder:{tmp_path / 'images'}", "train", paths=paths)


def test_a_fresh_machine_reads_a_few_images_not_all(machine, tmp_path, n_read):
    first = opened(machine("a"), tmp_path)
    assert n_read == [90]
    remarks = Remarks()
    again = opened(machine("b"), tmp_path)
    assert n_read == [90 + 64]
    assert (
        "another machine has checked 90 of these images; 64 of them were read and are the same" in remarks[0]
    )
    assert again.content_sha256 == first.content_sha256
    np.testing.assert_array_equal(again.sizes, first.sizes)
    opened(machine("b"), tmp_path)
    assert n_read == [90 + 64], "it has an index of its own now"


def test_other_images_of_the_same_names_lengths_and_times_are_noticed(machine, tmp_path, n_read):
    first = opened(machine("a"), tmp_path)
    folder = tmp_path / "images" / "train"
    shutil.copytree(tmp_path / "images" / "test", folder, dirs_exist_ok=True)
    remarks = Remarks()
    other = opened(machine("b"), tmp_path)
    assert "but 64 of 64 that were read differ here, so all are read" in remarks[0]
    assert other.content_sha256 != first.content_sha256


def test_a_store_that_cannot_be_written_costs_a_remark(machine, tmp_path, monkeypatch):
    from cache.errors import CacheError

    def closed(*_args):
        raise CacheError("memory://x: cannot be reached (PermissionError)")

    monkeypatch.setattr("pipeline.data.index_copies.write_durably", closed)
    remarks = Remarks()
    assert len(opened(machine("a"), tmp_path)) == 90
    assert "cannot be kept beside the stores: memory://x: cannot be reached" in remarks[0]
