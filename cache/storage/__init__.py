"""Where stores lie: local folders and object stores behind one interface.

A file is either whole or absent in both. Only `storage_of` tells the two apart. Callers use the functions
below; what only local folders can do (locks, renames, sweeping) is in `cache.storage.local`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

from upath import UPath

from cache.errors import CacheError
from cache.storage.local import TEMPORARY, LocalStorage
from cache.storage.remote import ObjectStorage

__all__ = [
    "TEMPORARY",
    "Location",
    "Storage",
    "at_once",
    "bytes_below",
    "create_durably",
    "delete_file",
    "delete_files",
    "delete_folder",
    "excludes",
    "is_file",
    "local_path",
    "location",
    "names_in",
    "open_file",
    "read_file",
    "read_files",
    "require_bucket",
    "sizes_in",
    "storage_of",
    "subfolders",
    "write_durably",
]

Location = Path | UPath  # a local path, or a place in an object store
AT_ONCE = 32  # requests to an object store
_MEMORY = 1 << 28  # bytes of files that are fetched at once
L = TypeVar("L")
A = TypeVar("A")
T = TypeVar("T")


class Storage(Protocol[L]):
    """What the cache needs of a kind of storage; `L` is its path type. An absent folder counts as empty."""

    def write(self, path: L, *parts: bytes | memoryview) -> None:
        """Write a file from its parts, whole or not at all."""

    def create(self, path: L, *parts: bytes | memoryview) -> bool:
        """Like `write`, unless there is such a file; returns whether it was written."""

    def excludes(self, path: L, content: bytes) -> bool:
        """Whether `create` is one step here, asked of a file that has this content."""

    def read(self, path: L) -> bytes:
        """All bytes of a file."""

    def open(self, path: L) -> BinaryIO:
        """A file open for reading."""

    def is_file(self, path: L) -> bool:
        """Whether there is such a file."""

    def names(self, folder: L) -> list[str]:
        """Names of files and folders, sorted."""

    def subfolders(self, folder: L) -> list[L]:
        """The folders in a folder, sorted."""

    def sizes(self, folder: L) -> dict[str, int]:
        """Bytes of every finished file, by name."""

    def bytes_below(self, folder: L) -> int:
        """Bytes of all finished files below a folder."""

    def delete_file(self, path: L) -> None:
        """Remove a file, if there is one."""

    def delete_files(self, folder: L, names: list[str]) -> None:
        """Remove some files of a folder."""

    def delete_folder(self, folder: L) -> None:
        """Remove a folder and all that is in it."""

    def make_folder(self, folder: L) -> None:
        """Make a folder for files, unless it exists; its parent must exist."""

    def local_path(self, place: L) -> Path | None:
        """The place in a local folder; None if it is not in one."""

    def require_bucket(self, place: L) -> None:
        """Raise CacheError if `place` is in a bucket that does not exist."""


_LOCAL, _REMOTE = LocalStorage(), ObjectStorage()


def storage_of(place: Location) -> Storage[Any]:
    """The storage that holds a place."""
    return _LOCAL if isinstance(place, Path) else _REMOTE


def local_path(place: Location) -> Path | None:
    """The place in a local folder; None in an object store."""
    return storage_of(place).local_path(place)


def location(text: str | Path) -> Location:
    """Parse a place: s3://bucket/stores, gs://..., memory://... in an object store, else a local path.

    Listings of an object store are not cached: fsspec would keep them for the life of the process and never
    see what other processes write. Raises CacheError if the package for this kind of URL is not installed.
    """
    if "://" not in str(text):
        return Path(text)
    try:
        place = UPath(text)
        if place.protocol in ("file", "local"):
            return Path(place.path)
        with suppress(TypeError):  # the few that pass every option to a client (SFTP) cache no listings
            place = UPath(text, use_listings_cache=False, **_s3_options(place))
            place.fs  # noqa: B018 - loads the package
        return place
    except (ImportError, ValueError) as error:
        raise CacheError(
            f"{text}: this kind of URL cannot be opened ({error}); install its fsspec package, "
            f"e.g. by pip install 'sskt[s3]' for s3://, or gcsfs for gs://"
        ) from error


def _s3_options(place: UPath) -> dict[str, Any]:
    """s3fs asks for a file's size first, to fetch it in parts, unless told that there is one part: ours are
    fetched whole. Its client opens 10 connections unless told otherwise, here or in fsspec's configuration.
    """
    if place.protocol not in ("s3", "s3a"):
        return {}
    configured = getattr(place.fs, "config_kwargs", {})
    return {"max_concurrency": 1, "config_kwargs": {"max_pool_connections": AT_ONCE, **configured}}


def require_bucket(place: Location) -> None:
    """Raise CacheError if `place` is in a bucket that does not exist, most likely a misspelt URL.

    An absent folder is an empty cache, and an absent bucket would look like one. Each bucket is checked once.
    """
    storage_of(place).require_bucket(place)


def write_durably(path: Location, *parts: bytes | memoryview) -> None:
    """Write a file from its parts, in order; on an error the previous file, if any, stays."""
    storage_of(path).write(path, *parts)


def create_durably(path: Location, *parts: bytes | memoryview) -> bool:
    """Like `write_durably`, unless there is such a file already; returns whether it was written.

    Of several processes that do this at once, one succeeds, by a hard link or a put with If-None-Match. Where
    neither is to be had (see `excludes`), two of them may.
    """
    return storage_of(path).create(path, *parts)


def excludes(path: Location, content: bytes) -> bool:
    """Whether, where `path` is, `create_durably` lets one process succeed, not two at once. `path`: a file
    that has this content, which is put once more to find out.
    """
    return storage_of(path).excludes(path, content)


def read_file(path: Location) -> bytes:
    """All bytes of a file."""
    return storage_of(path).read(path)


def read_files(paths: Sequence[Location]) -> list[bytes | None]:
    """All bytes of each file, None for one that does not exist; see `at_once`."""

    def read(path: Location) -> bytes | None:
        with suppress(FileNotFoundError):
            if local_path(path) is None or is_file(path):  # which tells a closed folder from an absent file
                return read_file(path)
        return None

    return at_once(read, paths, paths[0]) if paths else []


def at_once(act: Callable[[A], T], items: Sequence[A], place: Location, *, nbytes: int = 1) -> list[T]:
    """Apply `act` to every item, concurrently if each is a request to an object store, where `place` is.

    nbytes: what one holds in memory meanwhile; large ones are fewer at a time.
    """
    n = min(len(items), AT_ONCE, max(1, _MEMORY // nbytes))
    if n <= 1 or local_path(place):
        return [act(item) for item in items]
    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(act, items))


def open_file(path: Location) -> BinaryIO:
    """Open a file for reading, unbuffered; from an object store it is fetched whole."""
    return storage_of(path).open(path)


def is_file(path: Location) -> bool:
    """Whether there is such a file. Raises CacheError if even its bucket does not exist."""
    return storage_of(path).is_file(path)


def names_in(folder: Location) -> list[str]:
    """The names of the files and folders in a folder, sorted; none if it does not exist."""
    return storage_of(folder).names(folder)


def subfolders(folder: Location) -> list[Location]:
    """The folders in a folder, sorted; none if it does not exist."""
    return storage_of(folder).subfolders(folder)


def sizes_in(folder: Location) -> dict[str, int]:
    """The bytes of every finished file in a folder, by name; none if it does not exist."""
    return storage_of(folder).sizes(folder)


def bytes_below(folder: Location) -> int:
    """Bytes of all finished files below a folder."""
    return storage_of(folder).bytes_below(folder)


def delete_file(path: Location) -> None:
    """Remove a file, if it exists."""
    storage_of(path).delete_file(path)


def delete_files(folder: Location, names: list[str]) -> None:
    """Remove some files of a folder, in as few requests as possible."""
    storage_of(folder).delete_files(folder, names)


def delete_folder(folder: Location) -> None:
    """Remove a folder and all that is in it."""
    storage_of(folder).delete_folder(folder)
