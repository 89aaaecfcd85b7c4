"""Local folders: files that are whole or absent, and locks that the kernel lifts when their holder dies.

Files are written beside their place, flushed, renamed, and the folder is flushed: Zarr's own LocalStore
(3.1.6) also writes beside and renames, but never calls fsync, and after a power loss a name may stand for an
empty file.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from cache.errors import FolderClosed

# file locks; None on Windows, where nothing is swept and nothing can be claimed
fcntl: Any = importlib.import_module("fcntl") if importlib.util.find_spec("fcntl") else None

TEMPORARY = ".tmp-"  # part of every unfinished file's and folder's name; no reader looks at those


class LocalStorage:
    """See `cache.storage.Storage`."""

    def write(self, path: Path, *parts: bytes | memoryview) -> None:
        """See `cache.storage.write_durably`."""
        while not _written(temporary_sibling(path), path, parts):
            pass
        sync_folder(path.parent)

    def read(self, path: Path) -> bytes:
        """All bytes of a file."""
        return path.read_bytes()

    def open(self, path: Path) -> BinaryIO:
        """A file open for reading, not buffered."""
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
        """Remove a file; nothing happens if there is none."""
        with suppress(FileNotFoundError):
            path.unlink()

    def delete_files(self, folder: Path, names: list[str]) -> None:
        """Remove some files of a folder."""
        for name in names:
            self.delete_file(folder / name)

    def delete_folder(self, folder: Path) -> None:
        """Remove a folder and all that is in it.

        It is renamed first: its place is free at once, and what a kill leaves of it is swept.
        """
        descriptor = _hold(folder)
        try:
            temporary = folder.rename(temporary_sibling(folder))
            sync_folder(folder.parent)
            shutil.rmtree(temporary)
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def make_room(self, path: Path) -> None:
        """Make the folder that a file will lie in."""
        path.parent.mkdir(parents=True, exist_ok=True)


@contextmanager
def looking_into(folder: Path) -> Iterator[None]:
    """Raise FolderClosed where a local folder's owner does not let this user look into it."""
    try:
        yield
    except PermissionError as error:
        raise FolderClosed(
            f"{folder}: cannot be looked into ({error.strerror or error}); make it readable, or leave it out"
        ) from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, held while it is filled, removed if it is still there afterwards."""
    temporary = temporary_sibling(path)
    temporary.mkdir()
    descriptor = _hold(temporary)
    try:
        yield temporary
    finally:
        if descriptor is not None:
            os.close(descriptor)
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Within it no other process is alone in the same folder; the kernel lets go of it when this one dies.

    Raises BlockingIOError if another process is there. Where folders cannot be locked (Windows, NFS) nobody
    is kept out.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # a network's file system
            pass
        yield
    finally:
        os.close(descriptor)


def temporary_sibling(path: Path) -> Path:
    """A name in the same folder that no other process will choose."""
    return path.with_name(f"{path.name}{TEMPORARY}{uuid.uuid4().hex[:16]}")


def abandoned(folder: Path) -> list[Path]:
    """Temporary files and folders in `folder` whose writer is gone.

    A writer holds a lock that the kernel lifts when it dies, so neither clocks nor process numbers matter.
    """
    return [path for path in _temporaries(folder) if _if_free(path, lambda _: None)]


def sweep(folder: Path) -> int:
    """Remove what `abandoned` finds; returns how many that were."""
    return sum(_if_free(path, _remove) for path in _temporaries(folder))


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk."""
    if os.name == "nt":  # Windows opens no folders and keeps its names in a journal
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder`, and the folder itself, to the disk."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            with (Path(parent) / name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(parent))


def _written(temporary: Path, path: Path, parts: tuple[bytes | memoryview, ...]) -> bool:
    """Whether it worked; False in the rare case that another process swept the new file: before it was held,
    or from a machine where locks of this one are not seen.
    """
    try:
        with temporary.open("xb") as file:
            if not _lock(file.fileno(), wait=True) or not temporary.exists():
                return False
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
            try:
                temporary.replace(path)
            except FileNotFoundError:
                return False  # if it is the folder that is gone, the next attempt says so
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return True


def _temporaries(folder: Path) -> list[Path]:
    return [folder / name for name in LocalStorage().names(folder) if TEMPORARY in name]


def _if_free(path: Path, act: Callable[[Path], None]) -> bool:
    """Act on a temporary that nobody holds, while holding it; whether that was so."""
    if fcntl is None:
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # finished meanwhile
        return False
    try:
        free = _lock(descriptor, wait=False)
        if free:
            act(path)
        return free
    finally:
        os.close(descriptor)


def _hold(folder: Path) -> int | None:
    """An open descriptor that holds a folder; None where there are no locks."""
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    _lock(descriptor, wait=True)
    return descriptor


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Hold what is open until it is closed; without `wait` False if another process does, or might."""
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
