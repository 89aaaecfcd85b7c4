"""Compare a store's metadata with the backup made with it, and restore either from the other."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from cache.errors import StoreDamaged
from cache.layout import BACKUP, RESTORES, TABLES, backup_of, read_group
from cache.row_format import ROW_ARRAYS
from cache.storage import Location, at_once, is_file, names_in, read_file, storage_of, write_durably

_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)
_UNITS = "units/zarr.json"
_GROWING = (*(f"{name}/zarr.json" for name in ROW_ARRAYS), _UNITS)


def metadata_faults(path: Location) -> list[str]:
    """Faults of the backup of a store's metadata, or of metadata that differs from it."""
    restores = RESTORES.format(path)
    try:
        files = _copied(path)
    except _UNREADABLE as error:
        return [f"{path / BACKUP}: the copy of the metadata cannot be used ({error}); {restores}"]
    return [
        f"{path / name}: was edited or damaged, it differs from its copy in {BACKUP}; {restores}"
        for name, found in _read_each(path, [*files]).items()
        if not _sound(name, found, files[name])
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
    current = _read_each(path, [*files])
    views = _n_views(path, files, current)
    restored = []
    for name, wanted in files.items():
        sound = _sound(name, current[name], wanted)
        if name in _GROWING:
            # rows may be ahead of `units`: they grow first, shrink last, and a kill in between is no damage
            ahead = name != _UNITS and _views(current[name]) > views
            sound = sound and (ahead or _views(current[name]) == views)
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


def _n_views(path: Location, files: dict[str, Any], current: dict[str, dict[str, Any] | None]) -> int:
    """How many views a store has. If the metadata of `units` and of the rows is sound, `units` decides. Else
    it is what the sound metadata says, but at least as many as the entries need; if neither is left, as many
    as the store was created with.
    """
    growing = [name for name in files if name in _GROWING]
    sound = {name: _views(current[name]) for name in growing if _sound(name, current[name], files[name])}
    if len(sound) > 1 and sound[_UNITS] == min(sound.values()):
        return sound[_UNITS]
    entries = [name.split(".") for name in names_in(path / "units")]
    candidates = [1 + int(entry[1]) for entry in entries if len(entry) == 3 and entry[1].isdecimal()]
    if sound:
        candidates.append(min(sound.values()))
    as_created: int = files[_UNITS]["shape"][0]
    return max(candidates, default=as_created)


def _read_each(path: Location, names: list[str]) -> dict[str, dict[str, Any] | None]:
    """Read JSON objects of a store, by name; None for one that is missing or is none."""

    def read(name: str) -> dict[str, Any] | None:
        try:
            metadata = json.loads(read_file(path / name))
        except (OSError, ValueError):
            return None
        return metadata if isinstance(metadata, dict) else None

    return dict(zip(names, at_once(read, names, path), strict=True))


def _sound(name: str, found: dict[str, Any] | None, wanted: dict[str, Any]) -> bool:
    """Whether metadata is as created, whatever the number of views of an array that can grow."""
    if found is not None and name in _GROWING and _views(found) > 0:
        wanted = {**wanted, "shape": [_views(found), *wanted["shape"][1:]]}
    return found == wanted


def _views(metadata: dict[str, Any] | None) -> int:
    """The number of views an array has room for; 0 if its metadata makes no sense."""
    shape = (metadata or {}).get("shape")
    return shape[0] if isinstance(shape, list) and shape and isinstance(shape[0], int) else 0
