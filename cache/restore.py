"""Put a store's metadata back from the copy that was made with it."""

from __future__ import annotations

import hashlib
import json

from cache.errors import StoreDamaged
from cache.files import Location, write_durably
from cache.layout import BACKUP

_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)


def restore_metadata(path: Location) -> list[str]:
    """Put the group's and the arrays' zarr.json back from the copy that was made with them; returns which.

    The number of views becomes what the units need, if the store has grown since. Raises StoreDamaged if the
    copy is damaged too.
    """
    try:
        copy = json.loads((path / BACKUP).read_text())
        files = copy["files"]
        if hashlib.sha256(json.dumps(files).encode()).hexdigest() != copy["sha256"]:
            raise ValueError("its checksum differs")
        entries = [entry.name.split(".") for entry in (path / "units").iterdir()]
    except _UNREADABLE as error:
        raise StoreDamaged(
            f"{path / BACKUP}: the copy of the store's metadata is damaged too ({error}); "
            f"precompute into another cache folder"
        ) from error
    views = 1 + max((int(e[1]) for e in entries if len(e) == 3 and e[1].isdecimal()), default=0)
    restored = []
    for name, text in files.items():
        metadata = json.loads(text)
        if name in ("logits/zarr.json", "topk/zarr.json", "units/zarr.json"):
            metadata["shape"][0] = max(views, metadata["shape"][0])
        try:
            there = json.loads((path / name).read_text())
            if name != "zarr.json" and there.get("shape", [0])[0] > metadata["shape"][0]:
                metadata["shape"][0] = there["shape"][0]  # grown, and nothing written there yet
        except _UNREADABLE:
            there = None
        if there != metadata:
            write_durably(path / name, json.dumps(metadata, indent=2).encode())
            restored.append(name)
    return restored
