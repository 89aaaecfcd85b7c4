"""Free disk space: remove what killed writers left behind, and whole stores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cache.errors import CacheError, StoreDamaged
from cache.layout import BACKUP, TABLES
from cache.locks import lock_file, size_lock
from cache.row_format import ROW_ARRAYS
from cache.storage import (
    TEMPORARY,
    Location,
    delete_file,
    delete_files,
    delete_folder,
    is_file,
    local_path,
    names_in,
    subfolders,
)
from cache.storage.local import abandoned, sweep

_UNITS = ("units", *ROW_ARRAYS)  # the folders that units may be in
_PARTS = {*_UNITS, *TABLES}  # the folders of a store
_METADATA = {"zarr.json", BACKUP}  # its files, either of which identifies it


def leftovers(root: Location) -> list[Path]:
    """Files and folders below a local `root` that no reader will ever use and whose writers are gone.

    Folders that cannot be listed are skipped; raises FolderClosed if `root` is one.
    """
    top = local_path(root)
    return [path for folder in _folders(top) for path in abandoned(folder)] if top else []


def sweep_all(root: Location) -> int:
    """Remove what `leftovers` finds; returns their number."""
    top = local_path(root)
    return sum(map(sweep, _folders(top))) if top else 0


def require_store(path: Location) -> None:
    """Raise StoreDamaged unless `path` is a store, sound or not, or only parts of one."""
    names = set(names_in(path))
    if path.suffix != ".zarr" or not (names & _METADATA or (names and names <= _PARTS)):
        raise StoreDamaged(f"{path}: is not a store, nothing was removed; sskt cache ls lists them")


def remove_store(path: Location) -> None:
    """Delete a store, sound or not. In a local folder it ceases to be a store at once; in an object store a
    kill leaves one that lacks units, which another call removes. Raises StoreDamaged if `path` is no store
    and CacheError if it cannot be deleted.
    """
    require_store(path)
    try:
        if folder := local_path(path):
            delete_file(lock_file(folder))
        else:
            _empty(path)
        delete_folder(path)
    except OSError as error:
        raise CacheError(f"{path}: cannot be removed ({error.strerror or error})") from error


def clear_remains(path: Location) -> None:
    """Make room for a new store where a killed removal has left parts of an old one.

    Raises StoreDamaged if `path` is a store that has only lost its zarr.json, and CacheError if it holds
    anything else, or stray units in an object store.
    """
    if folder := local_path(path):
        if names_in(folder):
            with size_lock(folder):  # another process may be making room, and make its store then
                if _holds_remains(path):
                    delete_folder(path)
    # Object stores have no locks, so nothing is deleted: another process may be making its store. Its
    # zarr.json is written before its units and checked after them, so those are never taken for remains.
    elif names_in(path) and any(_chunks(path / part) for part in _UNITS) and _holds_remains(path):
        raise CacheError(
            f"{path}: holds units, but neither zarr.json nor {BACKUP}, so nobody can say what they are of; "
            f"`sskt cache prune {path}` removes them"
        )


def _empty(path: Location) -> None:
    """Delete all of a store in an object store except its zarr.json, which makes it a store: nothing can be
    renamed there, and a killed removal must not leave what looks like finished units of a new store.
    """
    for part in _UNITS:  # entries before rows, as for a single unit
        delete_files(path / part, _chunks(path / part))
    for folder in subfolders(path):
        delete_folder(folder)
    delete_file(path / BACKUP)


def _chunks(array: Location) -> list[str]:
    return [name for name in names_in(array) if name.startswith("c.")]


def _holds_remains(path: Location) -> bool:
    """Whether a folder holds parts of a store and nothing else; False if it holds a store."""
    names = names_in(path)
    if not names or is_file(path / "zarr.json"):
        return False
    if is_file(path / BACKUP):
        raise StoreDamaged(
            f"{path}: has lost its zarr.json; `sskt cache verify {path} --repair` restores it, "
            f"`sskt cache prune {path}` removes the store"
        )
    if strange := [name for name in names if name not in _PARTS and TEMPORARY not in name]:
        raise CacheError(
            f"{path}: holds {strange[0]}, which is no part of a store; "
            f"move it away, or choose another cache folder"
        )
    return True


def _folders(root: Path) -> Iterator[Path]:
    """Every folder that may hold something unfinished: all except those that are unfinished themselves."""
    names_in(root)  # raises for `root` itself; below it os.walk skips what it cannot list
    for folder, inside, _ in os.walk(root):
        inside[:] = sorted(name for name in inside if TEMPORARY not in name)
        yield Path(folder)
