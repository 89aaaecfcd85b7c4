"""Object stores as they are: buckets that have to be there, and listings that a client library keeps."""

import sys
from typing import ClassVar

import numpy as np
import pytest
from cache_samples import ALL_UNITS, fill, filled_store, logits_of, new_store
from click.testing import CliRunner
from fsspec.implementations.memory import MemoryFileSystem
from upath import UPath

from cache.cleanup import remove_store
from cache.errors import CacheError
from cache.storage import location, write_durably
from cache.storage import remote as files
from cache.store import Store, find_stores
from cli import main


class Bucketed(MemoryFileSystem):
    """What matters of S3 as s3fs has it: an error for what is in no bucket, and listings kept for the
    life of the object, unless it is told not to, and answer for the files in them.
    """

    protocol: ClassVar = ("s3",)
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]
    root_marker = ""

    @classmethod
    def _strip_protocol(cls, path):
        return str(path).removeprefix("s3://").strip("/")

    def _in_bucket(self, path):
        path = self._strip_protocol(path)
        if path.partition("/")[0] != "bkt":
            raise FileNotFoundError("The specified bucket does not exist")
        return path

    def ls(self, path, detail=True, **_):
        path = self._in_bucket(path)
        found = self.dircache[path] if path in self.dircache else super().ls(path, detail=True)
        self.dircache[path] = found  # nothing happens where no listings are to be kept
        return found if detail else [info["name"] for info in found]

    def info(self, path, **_):
        path = self._in_bucket(path)
        if path == "bkt":
            return {"name": path, "size": 0, "type": "directory"}
        folder = path.rpartition("/")[0]
        if folder in self.dircache:
            found = [info for info in self.dircache[folder] if info["name"] == path]
            if not found:
                raise FileNotFoundError(path)
            return found[0]
        return super().info(path)

    def pipe_file(self, path, value, **options):
        super().pipe_file(self._in_bucket(path), value, **options)


@pytest.fixture
def s3(monkeypatch):
    """A bucket named bkt in this process's memory."""
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "s3", Bucketed)
    monkeypatch.setattr(files, "_buckets", set())
    Bucketed.clear_instance_cache()
    yield location("s3://bkt/stores")
    Bucketed.store.clear()


def test_the_stand_in_keeps_listings_as_s3fs_does(s3):
    place = UPath("s3://bkt/stores")  # opened as anybody would
    write_durably(place / "a", b"1")
    assert [info["name"] for info in place.fs.ls(place.path)] == ["bkt/stores/a"]
    write_durably(s3 / "b", b"2")
    assert len(place.fs.ls(place.path)) == 1


def test_what_another_process_writes_is_seen_after_the_first_listing(s3):
    store = new_store(s3)
    logits = logits_of(store)
    assert store.pending(2) == ALL_UNITS
    assert find_stores(s3) == [store.path]
    other = Store.open(UPath(str(store.path), another_process=True))
    assert other.path.fs is not store.path.fs
    fill(other, logits)
    assert store.pending(2) == []
    np.testing.assert_array_equal(store.view(1), logits[1])
    remove_store(other.path)
    assert find_stores(s3) == []


def test_an_absent_folder_is_an_empty_cache_and_an_absent_bucket_an_error(s3):
    assert find_stores(s3 / "nothing") == []
    for look in (find_stores, lambda place: Store.open(place / "s.zarr"), new_store, filled_store):
        with pytest.raises(
            CacheError, match=r"^s3://bkd: there is no such bucket; make it, or correct the URL"
        ):
            look(location("s3://bkd/stores"))


@pytest.mark.parametrize(
    "command",
    [
        "cache ls --cache-dir s3://bkd/stores",
        "cache info s3://bkd/s.zarr",
        "cache verify s3://bkd/s.zarr",
        "cache prune s3://bkd/s.zarr",
        "targets --cache-dir s3://bkd/stores",
        "prepare --target digits --cache-dir s3://bkd/stores",
        "precompute --target digits --source imagenet --cache-dir s3://bkd/stores",
        "train --target digits --method scratch --cache-dir s3://bkd/stores",
        "sweep --target digits --sources imagenet --cache-dir s3://bkd/stores",
        "reproduce --table S1 --dry-run --cache-dir s3://bkd/stores",
    ],
)
def test_every_command_says_that_the_bucket_is_not_there(s3, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, command.split())
    assert result.exit_code == 1
    assert "s3://bkd: there is no such bucket" in result.output
    assert not list(tmp_path.iterdir())
