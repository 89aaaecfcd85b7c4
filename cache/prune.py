"""Give disk space back: what killed writers left behind, and whole stores."""

from __future__ import annotations

from pathlib import Path

from cache.claims import Claims, claims_file
from cache.errors import CacheError, StoreDamaged
from cache.files import (
    TEMPORARY,
    Location,
    abandoned,
    delete_file,
    delete_folder,
    is_file,
    names_in,
    sweep,
)
from cache.layout import BACKUP, TABLES

_PARTS = {"logits", "topk", "units", *TABLES}  # the folders of a store


def leftovers(root: Location) -> list[Path]:
    """Files and folders below a local `root` that no reader will ever look at, and whose writers are gone."""
    if not isinstance(root, Path):
        return []
    return [path for folder in _folders(root) for path in abandoned(folder)]


def sweep_all(root: Location) -> int:
    """Remove what `leftovers` finds; returns how many that were."""
    return sum(map(sweep, _folders(root))) if isinstance(root, Path) else 0


def require_store(path: Location) -> None:
    """Raise StoreDamaged unless `path` is a store, sound or not."""
    if path.suffix != ".zarr" or not any(is_file(path / name) for name in ("zarr.json", BACKUP)):
        raise StoreDamaged(f"{path}: is not a store, nothing was removed; sskt cache ls lists them")


def remove_store(path: Location) -> None:
    """Delete a store, sound or not; from the first moment on it is none. Raises StoreDamaged if `path` is no
    store and CacheError if it cannot be deleted.
    """
    require_store(path)
    try:
        if isinstance(path, Path):
            delete_file(claims_file(path))
        else:  # nothing can be renamed there; without these two what is left is no store, see `clear_remains`
            delete_file(path / "zarr.json")
            delete_file(path / BACKUP)
        delete_folder(path)
    except OSError as error:
        raise CacheError(f"{path}: cannot be removed ({error.strerror or error})") from error


def clear_remains(path: Location) -> None:
    """Make room for a new store where a removal that was killed has left parts of an old one.

    Raises StoreDamaged if a store lies there that has only lost its zarr.json, and CacheError if something
    else does.
    """
    if isinstance(path, Path):
        if names_in(path):
            with Claims(path).whole_store():  # another process may be making room, and make its store then
                if _holds_remains(path):
                    delete_folder(path)
        return
    # Units are written only where a group is: what was here before we looked for one belongs to none.
    folders = [path / part for part in ("units", "logits", "topk")]
    stale = [folder / name for folder in folders for name in names_in(folder) if name.startswith("c.")]
    if stale and _holds_remains(path):
        for file in stale:
            delete_file(file)


def _holds_remains(path: Location) -> bool:
    """Whether parts of a store lie in a folder, and nothing else; False if a store does."""
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


def _folders(root: Path) -> list[Path]:
    """Every folder in which something unfinished may lie: all but what is unfinished itself."""
    inside = [f for f in root.rglob("*") if f.is_dir() and TEMPORARY not in str(f.relative_to(root))]
    return [root, *inside]
