"""Where stores lie: local folders and object stores behind one interface.

Files are whole or absent in either. `storage_of` is the one place that tells the two apart; what only local
folders can do (locks, renames, sweeping) is in `cache.storage.local`.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

from upath import UPath

from cache.errors import CacheError
from cache.storage.local import TEMPORARY, LocalStorage
from cache.storage.remote import ObjectStorage
from cache.storage.remote import require_bucket as _require_bucket

__all__ = [
    "TEMPORARY",
    "Location",
    "Storage",
    "bytes_below",
    "delete_file",
    "delete_files",
    "delete_folder",
    "is_file",
    "local_path",
    "location",
    "names_in",
    "open_file",
    "read_file",
    "require_bucket",
    "sizes_in",
    "storage_of",
    "subfolders",
    "write_durably",
]

Location = Path | UPath  # a local path, or a place in an object store
L = TypeVar("L")


class Storage(Protocol[L]):
    """What the cache asks of a kind of storage; `L` is its kind of path. A folder that is absent is empty."""

    def write(self, path: L, *parts: bytes | memoryview) -> None:
        """Put the parts at a path, whole or not at all."""

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

    def make_room(self, path: L) -> None:
        """Make the folder that a file will lie in."""


_LOCAL, _REMOTE = LocalStorage(), ObjectStorage()


def storage_of(place: Location) -> Storage[Any]:
    """The storage that a place lies in."""
    return _LOCAL if isinstance(place, Path) else _REMOTE


def local_path(place: Location) -> Path | None:
    """The place in a local folder; None in an object store."""
    return place if isinstance(place, Path) else None


def location(text: str | Path) -> Location:
    """`text` as a place: s3://bucket/stores, gs://..., memory://... in an object store, else a local path.

    An object store's listings are asked for anew each time: fsspec would keep them for the life of the
    process, and what other processes write would never be seen. Raises CacheError if the package for that
    kind of URL is not installed.
    """
    if "://" not in str(text):
        return Path(text)
    try:
        place = UPath(text)
        if place.protocol in ("file", "local"):
            return Path(place.path)
        # s3fs looks at a file's size before it fetches it in parts; ours are fetched whole
        whole: dict[str, Any] = {"max_concurrency": 1} if place.protocol in ("s3", "s3a") else {}
        with suppress(TypeError):  # of those few that hand every option on to a client (SFTP): they keep none
            place = UPath(text, use_listings_cache=False, **whole)
            place.fs  # noqa: B018 - loads the package
        return place
    except (ImportError, ValueError) as error:
        raise CacheError(
            f"{text}: this kind of URL cannot be opened ({error}); install its fsspec package, "
            f"e.g. s3fs for s3:// or gcsfs for gs://"
        ) from error


def require_bucket(place: Location) -> None:
    """Raise CacheError if `place` lies in a bucket that is not there, most likely a misspelt URL: an absent
    folder is an empty cache, and an absent bucket would look like one. A bucket is looked for once.
    """
    if not isinstance(place, Path):
        _require_bucket(place)


def write_durably(path: Location, *parts: bytes | memoryview) -> None:
    """Put the parts, one after the other, at `path`; an error leaves what was there before."""
    storage_of(path).write(path, *parts)


def read_file(path: Location) -> bytes:
    """All bytes of a file."""
    return storage_of(path).read(path)


def open_file(path: Location) -> BinaryIO:
    """A file open for reading, not buffered; one of an object store is fetched whole."""
    return storage_of(path).open(path)


def is_file(path: Location) -> bool:
    """Whether there is such a file. Raises CacheError if there is not even its bucket."""
    return storage_of(path).is_file(path)


def names_in(folder: Location) -> list[str]:
    """The names of the files and folders in a folder, sorted; none if it is not there."""
    return storage_of(folder).names(folder)


def subfolders(folder: Location) -> list[Location]:
    """The folders in a folder, sorted; none if it is not there."""
    return storage_of(folder).subfolders(folder)


def sizes_in(folder: Location) -> dict[str, int]:
    """The bytes of every finished file in a folder, by name; none if it is not there."""
    return storage_of(folder).sizes(folder)


def bytes_below(folder: Location) -> int:
    """Bytes of all finished files below a folder."""
    return storage_of(folder).bytes_below(folder)


def delete_file(path: Location) -> None:
    """Remove a file; nothing happens if it is not there."""
    storage_of(path).delete_file(path)


def delete_files(folder: Location, names: list[str]) -> None:
    """Remove some files of a folder, in as few requests as it takes."""
    storage_of(folder).delete_files(folder, names)


def delete_folder(folder: Location) -> None:
    """Remove a folder and all that is in it."""
    storage_of(folder).delete_folder(folder)
