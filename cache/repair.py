"""Compare a store's metadata with the backup made with it, and restore either from the other."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from cache.errors import StoreDamaged
from cache.layout import BACKUP, RESTORES, TABLES, backup_of, read_group
from cache.storage import Location, is_file, names_in, read_file, storage_of, write_durably

_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)
_UNITS = "units/zarr.json"
_GROWING = ("logits/zarr.json", "topk/zarr.json", _UNITS)


def metadata_faults(path: Location) -> list[str]:
    """Faults of the backup of a store's metadata, or of metadata that differs from it."""
    restores = RESTORES.format(path)
    try:
        files = _copied(path)
    except _UNREADABLE as error:
        return [f"{path / BACKUP}: the copy of the metadata cannot be used ({error}); {restores}"]
    return [
        f"{path / name}: was edited or damaged, it differs from its copy in {BACKUP}; {restores}"
        for name, wanted in files.items()
        if not _sound(name, _read(path / name), wanted)
    ]


def repair_metadata(path: Location) -> list[str]:
    """Restore the group's and the arrays' zarr.json from the backup, or the backup from sound metadata;
    returns the names of the files written.

    The number of views is that of the arrays that are left, or what the entries need. Raises StoreDamaged if
    metadata and backup are both damaged, or `path` is no store.
    """
    try:
        files = _copied(path)
    except _UNREADABLE as error:
        return _copy_again(path, error)
    there = {name: _read(path / name) for name in files}
    views = _views_left(path, files, there)
    restored = []
    for name, wanted in files.items():
        sound = _sound(name, there[name], wanted)
        if name in _GROWING:
            # rows may be ahead of `units`: they grow first and shrink last, so a kill in between is no damage
            ahead = name != _UNITS and _views(there[name]) > views
            sound = sound and (ahead or _views(there[name]) == views)
            wanted["shape"][0] = views
        if not sound:
            storage_of(path).make_folder((path / name).parent)
            write_durably(path / name, json.dumps(wanted, indent=2).encode())
            restored.append(name)
    return restored


def _copied(path: Location) -> dict[str, dict[str, Any]]:
    """The metadata of every file, as created; raises one of _UNREADABLE if the backup is damaged."""
    copy = json.loads(read_file(path / BACKUP))
    texts = copy["files"]
    if hashlib.sha256(json.dumps(texts).encode()).hexdigest() != copy["sha256"]:
        raise ValueError("its checksum differs")
    return {name: json.loads(text) for name, text in texts.items()}


def _copy_again(path: Location, error: Exception) -> list[str]:
    """Write the backup anew from the metadata in use; StoreDamaged if that is damaged as well."""
    try:
        layout = read_group(path)[1]
    except StoreDamaged as damage:
        if not any(is_file(path / name) for name in (BACKUP, "zarr.json")):
            raise
        raise StoreDamaged(
            f"{path / BACKUP}: the copy of the store's metadata is damaged too ({error}); "
            f"precompute into another cache folder"
        ) from damage
    folders = sorted((layout.form.array, "units", *TABLES))
    names = [*(f"{folder}/zarr.json" for folder in folders), "zarr.json"]
    files = {name: read_file(path / name).decode() for name in names}
    write_durably(path / BACKUP, backup_of(files))
    return [BACKUP]


def _views_left(path: Location, files: dict[str, Any], there: dict[str, dict[str, Any] | None]) -> int:
    """The number of views of a store: that of `units` if it and the rows are sound; else that of whichever is
    left, but at least what the entries need; the number at creation if nothing is left.
    """
    left = {n: _views(there[n]) for n in files if n in _GROWING and _sound(n, there[n], files[n])}
    if len(left) > 1 and left[_UNITS] == min(left.values()):
        return left[_UNITS]
    entries = [name.split(".") for name in names_in(path / "units")]
    needed = [1 + int(e[1]) for e in entries if len(e) == 3 and e[1].isdecimal()]
    views: int = max([*needed, *([min(left.values())] if left else [])], default=files[_UNITS]["shape"][0])
    return views


def _read(file: Location) -> dict[str, Any] | None:
    """Read a JSON object; None if it is missing or not one."""
    try:
        metadata = json.loads(read_file(file))
    except (OSError, ValueError):
        return None
    return metadata if isinstance(metadata, dict) else None


def _sound(name: str, found: dict[str, Any] | None, wanted: dict[str, Any]) -> bool:
    """Whether metadata is as created, whatever the number of views of an array that can grow."""
    if found is not None and name in _GROWING and _views(found) > 0:
        wanted = {**wanted, "shape": [_views(found), *wanted["shape"][1:]]}
    return found == wanted


def _views(metadata: dict[str, Any] | None) -> int:
    """The number of views an array has room for; 0 if its metadata makes no sense."""
    shape = (metadata or {}).get("shape")
    return shape[0] if isinstance(shape, list) and shape and isinstance(shape[0], int) else 0
