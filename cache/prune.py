"""Give disk space back: what killed writers left behind, and whole stores."""

from __future__ import annotations

from pathlib import Path

from cache.claims import claims_file
from cache.errors import CacheError, StoreDamaged
from cache.files import TEMPORARY, Location, abandoned, delete_file, delete_folder, is_file, sweep


def leftovers(root: Location) -> list[Path]:
    """Files and folders below a local `root` that no reader will ever look at, and whose writers are gone."""
    if not isinstance(root, Path):
        return []
    return [path for folder in _folders(root) for path in abandoned(folder)]


def sweep_all(root: Location) -> int:
    """Remove what `leftovers` finds; returns how many that were."""
    return sum(map(sweep, _folders(root))) if isinstance(root, Path) else 0


def remove_store(path: Location) -> None:
    """Delete a store; from the first moment on it is none. Raises StoreDamaged if `path` is no store and
    CacheError if it cannot be deleted.
    """
    if path.suffix != ".zarr" or not is_file(path / "zarr.json"):
        raise StoreDamaged(f"{path}: is not a store, nothing was removed; sskt cache ls lists them")
    try:
        if isinstance(path, Path):
            delete_file(claims_file(path))
        else:
            delete_file(path / "zarr.json")
        delete_folder(path)
    except OSError as error:
        raise CacheError(f"{path}: cannot be removed ({error.strerror or error})") from error


def _folders(root: Path) -> list[Path]:
    """Every folder in which something unfinished may lie: all but what is unfinished itself."""
    inside = [f for f in root.rglob("*") if f.is_dir() and TEMPORARY not in str(f.relative_to(root))]
    return [root, *inside]
