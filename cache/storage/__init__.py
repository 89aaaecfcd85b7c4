"""Files that are whole or absent, in a local folder or behind an object store's URL.

Locally they are written beside their place, flushed, renamed, and the folder flushed: Zarr's own LocalStore
(3.1.6) also writes beside and renames, but never calls fsync, and after a power loss a name may stand for an
empty file. An object store's put is atomic by itself.

fsspec's own `exists`, `isfile` and `isdir` take any error for "it is not there", and its backends raise what
their client libraries do. So this room looks at files through the functions here, and `reaching` names every
failure.
"""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from upath import UPath
from upath.implementations.cloud import CloudPath

from cache.errors import CacheError, FolderClosed

# file locks; None on Windows, where nothing is swept and nothing can be claimed
fcntl: Any = importlib.import_module("fcntl") if importlib.util.find_spec("fcntl") else None

Location = Path | UPath  # a local path, or a place in an object store

TEMPORARY = ".tmp-"  # part of every unfinished file's and folder's name; no reader looks at those
_buckets: set[str] = set()  # that this process has seen


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
        except PermissionError:  # it is there, or its owner does not tell: requests to it will
            pass
    _buckets.add(bucket)


def write_durably(path: Location, *parts: bytes | memoryview) -> None:
    """Put the parts, one after the other, at `path`; an error leaves what was there before."""
    if not isinstance(path, Path):
        with reaching(path):
            path.fs.pipe_file(path.path, b"".join(parts))
        return
    while not _written(temporary_sibling(path), path, parts):
        pass
    sync_folder(path.parent)


@contextmanager
def reaching(place: Location) -> Iterator[None]:
    """Whatever an object store raises becomes a CacheError, but for FileNotFoundError.

    A failure to reach it is thereby never taken for damage, nor for an absent file. What a local folder
    raises stays as it is.
    """
    try:
        yield
    except Exception as error:
        if isinstance(place, Path) or isinstance(error, FileNotFoundError | CacheError):
            raise
        said = " ".join(str(error).split())
        raise CacheError(
            f"{place}: cannot be reached ({type(error).__name__}{said and f': {said}'}); look at the network "
            f"and the rights to the object store and run the same command again, finished units are kept"
        ) from error


@contextmanager
def looking_into(folder: Path) -> Iterator[None]:
    """Raise FolderClosed where a local folder's owner does not let this user look into it."""
    try:
        yield
    except PermissionError as error:
        raise FolderClosed(
            f"{folder}: cannot be looked into ({error.strerror or error}); make it readable, or leave it out"
        ) from error


def read_file(path: Location) -> bytes:
    """All bytes of a file."""
    if isinstance(path, Path):
        return path.read_bytes()
    with reaching(path):
        return bytes(path.fs.cat_file(path.path))


def open_file(path: Location) -> BinaryIO:
    """A file open for reading, not buffered; one of an object store is fetched whole."""
    return path.open("rb", buffering=0) if isinstance(path, Path) else io.BytesIO(read_file(path))


def is_file(path: Location) -> bool:
    """Whether there is such a file. Raises CacheError if there is not even its bucket."""
    if isinstance(path, Path):
        with looking_into(path.parent):
            return path.is_file()
    with reaching(path), suppress(FileNotFoundError):
        return bool(path.fs.info(path.path)["type"] == "file")
    require_bucket(path)
    return False


def names_in(folder: Location) -> list[str]:
    """The names of the files and folders in a folder, sorted; none if it is not there."""
    if isinstance(folder, Path):
        with looking_into(folder):
            return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    return [info["name"] for info in _listed(folder)]


def subfolders(folder: Location) -> list[Location]:
    """The folders in a folder, sorted; none if it is not there."""
    if isinstance(folder, Path):
        with looking_into(folder):
            return [folder / name for name in names_in(folder) if (folder / name).is_dir()]
    return [folder / info["name"] for info in _listed(folder) if info["type"] == "directory"]


def sizes_in(folder: Location) -> dict[str, int]:
    """The bytes of every file in a folder, by name, but for those that are being written; none if it is not
    there.
    """
    if isinstance(folder, Path):
        with looking_into(folder):
            paths = [folder / name for name in names_in(folder) if TEMPORARY not in name]
            return {path.name: path.stat().st_size for path in paths if path.is_file()}
    return {info["name"]: int(info["size"]) for info in _listed(folder) if info["type"] == "file"}


def bytes_below(folder: Location) -> int:
    """Bytes of all files below a folder, but for those that are being written."""
    if isinstance(folder, Path):
        with looking_into(folder):
            files = [file for file in folder.rglob("*") if TEMPORARY not in file.name and file.is_file()]
            return sum(file.stat().st_size for file in files)
    with reaching(folder):
        return sum(int(info["size"]) for info in folder.fs.find(folder.path, detail=True).values())


def delete_file(path: Location) -> None:
    """Remove a file; nothing happens if it is not there."""
    with reaching(path), suppress(FileNotFoundError):
        if isinstance(path, Path):
            path.unlink()
        else:
            path.fs.rm(path.path)


def delete_files(folder: UPath, names: list[str]) -> None:
    """Remove some files of a folder of an object store, in as few requests as it takes."""
    if names:
        with reaching(folder), suppress(FileNotFoundError):
            folder.fs.rm([f"{folder.path}/{name}" for name in names])


def delete_folder(folder: Location) -> None:
    """Remove a folder and all that is in it.

    A local one is renamed first: its place is free at once, and what a kill leaves of it is swept.
    """
    if not isinstance(folder, Path):
        with reaching(folder), suppress(FileNotFoundError):
            folder.fs.rm(folder.path, recursive=True)
        return
    descriptor = _hold(folder)
    try:
        temporary = folder.rename(temporary_sibling(folder))
        sync_folder(folder.parent)
        shutil.rmtree(temporary)
    finally:
        if descriptor is not None:
            os.close(descriptor)


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


def abandoned(folder: Location) -> list[Path]:
    """Temporary files and folders in `folder` whose writer is gone.

    A writer holds a lock that the kernel lifts when it dies, so neither clocks nor process numbers matter.
    """
    return [path for path in _temporaries(folder) if _if_free(path, lambda _: None)]


def sweep(folder: Location) -> int:
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


def _listed(folder: UPath) -> list[dict[str, Any]]:
    """Name, type and size of everything in a folder of an object store, sorted by name."""
    with reaching(folder), suppress(FileNotFoundError):
        found = folder.fs.ls(folder.path, detail=True)
        named = [{**info, "name": info["name"].rstrip("/").rpartition("/")[2]} for info in found]
        return sorted(named, key=lambda info: str(info["name"]))
    require_bucket(folder)
    return []


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


def _temporaries(folder: Location) -> list[Path]:
    if not isinstance(folder, Path):
        return []
    return [folder / name for name in names_in(folder) if TEMPORARY in name]


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
