"""Stores as rows of a table, for people and scripts that look around."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cache.errors import StoreDamaged
from cache.manifest import flatten
from cache.store import Store, find_stores

if TYPE_CHECKING:
    from pathlib import Path


def summaries(root: Path) -> list[dict[str, Any]]:
    """One row for every store below `root`; a damaged store has its `problem` told instead of its sizes."""
    return [_summary(path) for path in find_stores(root)]


def info(path: Path) -> dict[str, Any]:
    """What a store holds, what it depends on and how it was made, as dotted names and JSON values."""
    store = Store.open(path)
    n_done = store.n_views * store.n_blocks - len(store.pending(store.n_views))
    return {
        "path": str(path),
        "samples": store.n_samples,
        "classes": store.n_classes,
        "views": store.n_views,
        "units": store.n_views * store.n_blocks,
        "units_finished": n_done,
        "block_rows": store.block_rows,
        "bytes": store.nbytes,
        "format_version": store.manifest.format_version,
        **dict(flatten(store.manifest.identity)),
        **{f"made_by.{name}": value for name, value in flatten(store.manifest.made_by)},
    }


def _summary(path: Path) -> dict[str, Any]:
    try:
        store = Store.open(path)
        complete = store.complete
    except StoreDamaged as error:
        return {"path": str(path), "problem": str(error)}
    fields = dict(flatten(store.manifest.identity))
    return {
        "target": fields.get("target.name"),
        "source": fields.get("source.name"),
        "samples": store.n_samples,
        "classes": store.n_classes,
        "views": store.n_views,
        "complete": complete,
        "bytes": store.nbytes,
        "path": str(path),
    }
