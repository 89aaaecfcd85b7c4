"""Files that are whole or absent, in a local folder or behind an object store's URL.

Locally they are written beside their place, flushed, renamed, and the folder flushed: Zarr's own LocalStore
(3.1.6) also writes beside and renames, but never calls fsync, and after a power loss a name may stand for an
empty file. An object store's put is atomic by itself.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from upath import UPath

from cache.errors import CacheError

# file locks; None on Windows, where nothing is swept and nothing can be claimed
fcntl: Any = importlib.import_module("fcntl") if importlib.util.find_spec("fcntl") else None

Location = Path | UPath  # a local path, or a place in an object store

TEMPORARY = ".tmp-"  # part of every unfinished file's and folder's name; no reader looks at those


def location(text: str | Path) -> Location:
    """`text` as a place: s3://bucket/stores, gs://..., memory://... in an object store, else a local path.

    Raises CacheError if the package for that kind of URL is not installed.
    """
    if "://" not in str(text):
        return Path(text)
    try:
        place = UPath(text)
        place.fs  # noqa: B018 - loads the package
    except (ImportError, ValueError) as error:
        raise CacheError(
            f"{text}: this kind of URL cannot be opened ({error}); install its fsspec package, "
            f"e.g. s3fs for s3:// or gcsfs for gs://"
        ) from error
    return Path(place.path) if place.protocol in ("file", "local") else place


def write_durably(path: Location, *parts: bytes | memoryview) -> None:
    """Put the parts, one after the other, at `path`; an OSError leaves what was there before."""
    if not isinstance(path, Path):
        path.write_bytes(b"".join(parts))
        return
    while not _written(temporary_sibling(path), path, parts):
        pass
    sync_folder(path.parent)


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


def temporary_sibling(path: Path) -> Path:
    """A name in the same folder that no other process will choose."""
    return path.with_name(f"{path.name}{TEMPORARY}{uuid.uuid4().hex[:16]}")


def abandoned(folder: Location, prefix: str = "") -> list[Path]:
    """Temporary files and folders in `folder` whose writer is gone; their names start with `prefix`.

    A writer holds a lock that the kernel lifts when it dies, so neither clocks nor process numbers matter.
    """
    return [path for path in _temporaries(folder, prefix) if _if_free(path, lambda _: None)]


def sweep(folder: Location, prefix: str = "") -> int:
    """Remove what `abandoned` finds; returns how many that were."""
    return sum(_if_free(path, _remove) for path in _temporaries(folder, prefix))


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
    """Whether it worked; False in the rare case that the new file was swept before it was held."""
    try:
        with temporary.open("xb") as file:
            if not _lock(file.fileno(), wait=True) or not temporary.exists():
                return False
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return True


def _temporaries(folder: Location, prefix: str) -> list[Path]:
    if not isinstance(folder, Path) or not folder.is_dir():
        return []
    return [p for p in sorted(folder.iterdir()) if TEMPORARY in p.name and p.name.startswith(prefix)]


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
    """Hold what is open until it is closed; False if another process does."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
