"""Put a store's metadata back from the copy that was made with it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from cache.errors import StoreDamaged
from cache.files import Location, names_in, read_file, write_durably
from cache.layout import BACKUP

_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)
_GROWING = ("logits/zarr.json", "topk/zarr.json", "units/zarr.json")


def restore_metadata(path: Location) -> list[str]:
    """Put the group's and the arrays' zarr.json back from the copy that was made with them; returns which.

    The number of views becomes what the units need, if the store has grown since. Raises StoreDamaged if the
    copy is damaged too.
    """
    try:
        copy = json.loads(read_file(path / BACKUP))
        files = copy["files"]
        if hashlib.sha256(json.dumps(files).encode()).hexdigest() != copy["sha256"]:
            raise ValueError("its checksum differs")
        entries = [name.split(".") for name in names_in(path / "units")]
    except _UNREADABLE as error:
        raise StoreDamaged(
            f"{path / BACKUP}: the copy of the store's metadata is damaged too ({error}); "
            f"precompute into another cache folder"
        ) from error
    there = {name: _read(path / name) for name in files}
    sizes = [_views(metadata) for name, metadata in there.items() if name in _GROWING]
    views = max(1 + max((int(e[1]) for e in entries if len(e) == 3 and e[1].isdecimal()), default=0), *sizes)
    restored = []
    for name, text in files.items():
        wanted = json.loads(text)
        if name in _GROWING:
            wanted["shape"][0] = max(views, wanted["shape"][0])
            if _same_but_views(there[name], wanted):
                continue
        if there[name] != wanted:
            write_durably(path / name, json.dumps(wanted, indent=2).encode())
            restored.append(name)
    return restored


def _read(file: Location) -> dict[str, Any] | None:
    """A JSON object; None if it is not there or none."""
    try:
        metadata = json.loads(read_file(file))
    except (OSError, ValueError):
        return None
    return metadata if isinstance(metadata, dict) else None


def _views(metadata: dict[str, Any] | None) -> int:
    """How many views an array has room for, as far as its metadata can be understood."""
    shape = (metadata or {}).get("shape")
    return shape[0] if isinstance(shape, list) and shape and isinstance(shape[0], int) else 0


def _same_but_views(found: dict[str, Any] | None, wanted: dict[str, Any]) -> bool:
    """Whether an array's metadata is sound, however many views it has room for."""
    return (
        found is not None
        and _views(found) > 0
        and found
        == {
            **wanted,
            "shape": [_views(found), *wanted["shape"][1:]],
        }
    )
