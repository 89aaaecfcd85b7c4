"""Local folders: files that are whole or absent, and locks that the kernel lifts when their holder dies.

A file is written under a temporary name beside its place, flushed and renamed, then the folder is flushed.
Zarr's own LocalStore (3.1.6) also writes and renames, but never calls fsync: after a power loss a name may
stand for an empty file.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from cache.errors import FolderClosed

# file locks; None on Windows, where nothing is swept
fcntl: Any = importlib.import_module("fcntl") if importlib.util.find_spec("fcntl") else None

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # from a file system without them
TEMPORARY = ".tmp-"  # in the name of every unfinished file and folder; readers skip those


class LocalStorage:
    """See `cache.storage.Storage`."""

    def write(self, path: Path, *parts: bytes | memoryview) -> None:
        """See `cache.storage.write_durably`."""
        while _written(temporary_sibling(path), path, parts, _rename) is None:
            pass
        sync_folder(path.parent)

    def create(self, path: Path, *parts: bytes | memoryview) -> bool:
        """See `cache.storage.create_durably`."""
        made: bool | None = False
        if not self.is_file(path):
            while (made := _written(temporary_sibling(path), path, parts, _link)) is None:
                pass
        sync_folder(path.parent)  # of a file that was there as well: its writer may not have come to this yet
        return bool(made)

    def excludes(self, path: Path, content: bytes) -> bool:  # noqa: ARG002
        """See `cache.storage.excludes`: whether this file system has hard links."""
        link = temporary_sibling(path)
        try:
            os.link(path, link)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return False
        link.unlink()
        return True

    def read(self, path: Path) -> bytes:
        """All bytes of a file."""
        return path.read_bytes()

    def open(self, path: Path) -> BinaryIO:
        """Open a file for reading, unbuffered."""
        return path.open("rb", buffering=0)

    def is_file(self, path: Path) -> bool:
        """Whether there is such a file."""
        with looking_into(path.parent):
            return path.is_file()

    def names(self, folder: Path) -> list[str]:
        """The names of the files and folders in a folder, sorted."""
        with looking_into(folder):
            return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []

    def subfolders(self, folder: Path) -> list[Path]:
        """The folders in a folder, sorted."""
        with looking_into(folder):
            return [folder / name for name in self.names(folder) if (folder / name).is_dir()]

    def sizes(self, folder: Path) -> dict[str, int]:
        """The bytes of every finished file in a folder, by name."""
        with looking_into(folder):
            paths = [folder / name for name in self.names(folder) if TEMPORARY not in name]
            return {path.name: path.stat().st_size for path in paths if path.is_file()}

    def bytes_below(self, folder: Path) -> int:
        """Bytes of all finished files below a folder."""
        with looking_into(folder):
            files = [file for file in folder.rglob("*") if TEMPORARY not in file.name and file.is_file()]
            return sum(file.stat().st_size for file in files)

    def delete_file(self, path: Path) -> None:
        """Remove a file, if it exists."""
        with suppress(FileNotFoundError):
            path.unlink()

    def delete_files(self, folder: Path, names: list[str]) -> None:
        """Remove some files of a folder."""
        for name in names:
            self.delete_file(folder / name)

    def delete_folder(self, folder: Path) -> None:
        """Remove a folder and all that is in it.

        It is renamed first: its place is free at once, and what a kill leaves behind is swept.
        """
        descriptor = _hold(folder)
        try:
            temporary = folder.rename(temporary_sibling(folder))
            sync_folder(folder.parent)
            shutil.rmtree(temporary)
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def make_folder(self, folder: Path) -> None:
        """Make a folder, unless it exists; its parent must exist."""
        folder.mkdir(exist_ok=True)

    def local_path(self, place: Path) -> Path:
        """The place itself."""
        return place

    def require_bucket(self, place: Path) -> None:
        """Local folders have no buckets."""


@contextmanager
def looking_into(folder: Path) -> Iterator[None]:
    """Raise FolderClosed if this user may not list the folder."""
    try:
        yield
    except PermissionError as error:
        raise FolderClosed(
            f"{folder}: cannot be looked into ({error.strerror or error}); make it readable, or leave it out"
        ) from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`: locked while filled, removed afterwards unless it was renamed."""
    temporary = temporary_sibling(path)
    temporary.mkdir()
    descriptor = _hold(temporary)
    try:
        yield temporary
    finally:
        if descriptor is not None:
            os.close(descriptor)
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_sibling(path: Path) -> Path:
    """A name in the same folder that no other process will choose."""
    return path.with_name(f"{path.name}{TEMPORARY}{uuid.uuid4().hex[:16]}")


def abandoned(folder: Path) -> list[Path]:
    """Temporary files and folders in `folder` whose writers are gone.

    A writer holds a lock that the kernel lifts when it dies, so neither clocks nor process ids matter.
    """
    return [path for path in _temporaries(folder) if _if_free(path, lambda _: None)]


def sweep(folder: Path) -> int:
    """Remove what `abandoned` finds; returns their number."""
    return sum(_if_free(path, _remove) for path in _temporaries(folder))


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to disk."""
    if os.name == "nt":  # Windows opens no folders and keeps its names in a journal
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder`, and the folder itself, to disk."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            with (Path(parent) / name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(parent))


def _written(
    temporary: Path,
    path: Path,
    parts: tuple[bytes | memoryview, ...],
    put: Callable[[Path, Path], bool],
) -> bool | None:
    """Write `temporary` and `put` it at `path`; returns what that does, or None in the rare case that another
    process swept it first: before it was locked, or from a machine that does not see this one's locks.
    """
    try:
        with temporary.open("xb") as file:
            if not _lock(file.fileno(), wait=True) or not temporary.exists():
                return None
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
            try:
                return put(temporary, path)
            except FileNotFoundError:
                return None  # if the folder itself is gone, the next attempt raises
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _rename(temporary: Path, path: Path) -> bool:
    temporary.replace(path)
    return True


def _link(temporary: Path, path: Path) -> bool:
    """Give a written file the name `path` too, unless that is taken, and remove its temporary name; returns
    whether it has the name.
    """
    try:
        os.link(temporary, path)
        made = True
    except FileExistsError:
        # NFS: where the answer to a request is lost, its repetition finds the link that the first one made
        made = path.samefile(temporary)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        made = not path.exists()  # another process may come in between, see `excludes`
        if made:
            return _rename(temporary, path)
    temporary.unlink(missing_ok=True)
    return made


def _temporaries(folder: Path) -> list[Path]:
    return [folder / name for name in LocalStorage().names(folder) if TEMPORARY in name]


def _if_free(path: Path, act: Callable[[Path], None]) -> bool:
    """Lock a temporary and act on it, if nobody else holds it; returns whether that was so."""
    if fcntl is None:
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # its writer has finished meanwhile
        return False
    try:
        free = _lock(descriptor, wait=False)
        if free:
            act(path)
        return free
    finally:
        os.close(descriptor)


def _hold(folder: Path) -> int | None:
    """Lock a folder; returns the open descriptor that holds it, None where there are no locks."""
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    _lock(descriptor, wait=True)
    return descriptor


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Lock an open file or folder until it is closed; without `wait`, False if another may hold it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if wait:
            raise
        return False
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
