"""Plan and carry out `sskt cache prune`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cache.cleanup import leftovers, remove_store, require_store, sweep_all
from cache.errors import CacheError
from cache.storage import bytes_below, location
from cache.store import Store


def plan_pruning(cache_dir: str, stores: Sequence[str], views: int | None) -> list[dict[str, Any]]:
    """One dict per item to remove: what it is, its bytes and path.

    Without `stores`: everything in `cache_dir` that dead writers left unfinished. A store named twice is
    listed once. Raises CacheError if one of `stores` is none, or `views` is given without stores.
    """
    if not stores:
        if views is not None:
            raise CacheError(
                "--views says how many views of a STORE to keep; name one (sskt cache ls lists them)"
            )
        found = leftovers(location(cache_dir))
        return [{"what": "unfinished", "bytes": _size(path), "path": str(path)} for path in found]
    rows = []
    for path in {place.resolve(): place for place in map(location, stores)}.values():
        if views is None:
            require_store(path)
            rows.append({"what": "store", "bytes": bytes_below(path), "path": str(path)})
            continue
        store = Store.open(path)
        units = store.beyond(views)
        gone = max([store.n_views, *(unit.view + 1 for unit in units)]) - views
        if views <= store.n_views and gone:
            rows.append({"what": f"{gone} views", "bytes": sum(units.values()), "path": str(path)})
    return rows


def prune(rows: Sequence[dict[str, Any]], views: int | None) -> None:
    """Remove the items that `plan_pruning` listed."""
    for row in rows:
        path = location(row["path"])
        if row["what"] == "unfinished":
            sweep_all(path.parent)
        elif views is None:
            remove_store(path)
        else:
            Store.open(path).trim(views)


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
