"""Object stores, through fsspec: a put is atomic by itself, and listings are not cached.

fsspec's own `exists`, `isfile` and `isdir` take any error for "does not exist", and its backends raise
whatever their client libraries do. So the cache asks this class instead, and `reaching` names every failure.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

from upath import UPath
from upath.implementations.cloud import CloudPath

from cache.errors import CacheError

_TAKEN = ("PreconditionFailed", "412")  # a file is there that was to be created
_UNKNOWN = ("NotImplemented", "501")  # conditional puts, to this server
_buckets: set[str] = set()  # known to exist


class ObjectStorage:
    """See `cache.storage.Storage`."""

    def write(self, path: UPath, *parts: bytes | memoryview) -> None:
        """See `cache.storage.write_durably`."""
        with reaching(path):
            path.fs.pipe_file(path.path, b"".join(parts))

    def create(self, path: UPath, *parts: bytes | memoryview) -> bool:
        """See `cache.storage.create_durably`."""
        content = b"".join(parts)
        made = self._create(path, content)
        if made is None:  # another process may come in between, see `excludes`
            made = not self.is_file(path)
            if made:
                self.write(path, content)
        return made

    def excludes(self, path: UPath, content: bytes) -> bool:
        """See `cache.storage.excludes`: asked of the server, by the file that is there."""
        return self._create(path, content) is False

    def _create(self, path: UPath, content: bytes) -> bool | None:
        """Put a file if there is none; returns whether it was put, None if that cannot be asked for here."""
        with reaching(path):
            try:
                path.fs.pipe_file(path.path, content, mode="create")
            except FileExistsError:
                return False
            except TypeError:  # a package that knows no `mode`
                return None
            except OSError as error:
                if (code := _code(error)) not in (*_TAKEN, *_UNKNOWN):
                    raise
                return False if code in _TAKEN else None
        return True

    def read(self, path: UPath) -> bytes:
        """All bytes of a file."""
        with reaching(path):
            return bytes(path.fs.cat_file(path.path))

    def open(self, path: UPath) -> BinaryIO:
        """Open a file for reading, fetched whole."""
        return io.BytesIO(self.read(path))

    def is_file(self, path: UPath) -> bool:
        """Whether there is such a file: one request, for its first byte, where s3fs's `info` makes two for a
        file that is absent. Raises CacheError if even its bucket does not exist.
        """
        with reaching(path):
            try:
                path.fs.cat_file(path.path, start=0, end=1)
            except FileNotFoundError:
                self.require_bucket(path)
                return False
            except OSError as error:
                if _code(error) != "InvalidRange":  # of an empty file
                    raise
        return True

    def names(self, folder: UPath) -> list[str]:
        """The names of the files and folders in a folder, sorted."""
        return [info["name"] for info in self._list(folder)]

    def subfolders(self, folder: UPath) -> list[UPath]:
        """The folders in a folder, sorted."""
        return [folder / info["name"] for info in self._list(folder) if info["type"] == "directory"]

    def sizes(self, folder: UPath) -> dict[str, int]:
        """The bytes of every file in a folder, by name."""
        return {info["name"]: int(info["size"]) for info in self._list(folder) if info["type"] == "file"}

    def bytes_below(self, folder: UPath) -> int:
        """Bytes of all files below a folder."""
        with reaching(folder):
            return sum(int(info["size"]) for info in folder.fs.find(folder.path, detail=True).values())

    def delete_file(self, path: UPath) -> None:
        """Remove a file, if it exists."""
        with reaching(path), suppress(FileNotFoundError):
            path.fs.rm(path.path)

    def delete_files(self, folder: UPath, names: list[str]) -> None:
        """Remove some files of a folder, in as few requests as possible."""
        if names:
            with reaching(folder), suppress(FileNotFoundError):
                folder.fs.rm([f"{folder.path}/{name}" for name in names])

    def delete_folder(self, folder: UPath) -> None:
        """Remove a folder and all that is in it."""
        with reaching(folder), suppress(FileNotFoundError):
            folder.fs.rm(folder.path, recursive=True)

    def make_folder(self, folder: UPath) -> None:
        """Object stores have no folders, only names with slashes."""

    def local_path(self, place: UPath) -> None:
        """None: the place is not in a local folder."""

    def require_bucket(self, place: UPath) -> None:
        """See `cache.storage.require_bucket`."""
        if not isinstance(place, CloudPath):
            return
        bucket = f"{place.protocol}://{place.drive}"
        if bucket in _buckets:
            return
        with reaching(place):
            try:
                place.fs.info(place.drive)
            except FileNotFoundError:
                raise CacheError(
                    f"{bucket}: there is no such bucket; make it, or correct the URL ({place})"
                ) from None
            except PermissionError:  # it exists, or its owner does not tell: requests to it will
                pass
        _buckets.add(bucket)

    def _list(self, folder: UPath) -> list[dict[str, Any]]:
        """Name, type and size of everything in a folder, sorted by name."""
        with reaching(folder), suppress(FileNotFoundError):
            found = folder.fs.ls(folder.path, detail=True)
            named = [{**info, "name": info["name"].rstrip("/").rpartition("/")[2]} for info in found]
            return sorted(named, key=lambda info: str(info["name"]))
        self.require_bucket(folder)
        return []


def _code(error: OSError) -> str:
    """What an S3 server calls an error that s3fs has translated."""
    answer = getattr(error.__cause__, "response", None) or {}
    return str(answer.get("Error", {}).get("Code"))


@contextmanager
def reaching(place: UPath) -> Iterator[None]:
    """Turn whatever an object store raises into a CacheError, except FileNotFoundError.

    A failure to reach it is thus never taken for damage, nor for an absent file.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, FileNotFoundError | CacheError):
            raise
        said = " ".join(str(error).split())
        raise CacheError(
            f"{place}: cannot be reached ({type(error).__name__}{said and f': {said}'}); look at the network "
            f"and the rights to the object store and run the same command again, finished units are kept"
        ) from error
