"""The Zarr v3 group behind a store: its arrays, how a new one is put in place, how one is checked.

docs/store-format.md describes the same for readers in other languages.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.storage import MemoryStore

from cache.errors import CacheError, StoreDamaged
from cache.manifest import Manifest, digest
from cache.row_format import LOGITS, ROW_ARRAYS, TAIL_NUMBERS, RowFormat
from cache.storage import (
    Location,
    at_once,
    create_durably,
    delete_file,
    excludes,
    is_file,
    local_path,
    read_file,
    read_files,
    write_durably,
)
from cache.storage.local import new_folder, sync_folder, sync_tree

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

log = logging.getLogger(__name__)

MANIFEST = "sskt"  # the group attribute that holds the manifest
TABLES_SHA256 = "tables_sha256"  # the group attribute that holds one sha256 per table
N_CLASSES = "n_classes"  # the group attribute with K, which the rows of a top-k store do not show
ATTRIBUTES_SHA256 = "attributes_sha256"  # the group attribute with the sha256 of all the others
_TABLE_AXES = {"ids": (1,), "contents": (2,), "probe_ids": (1,), "probe": (4, 5)}  # images or clips
TABLES = tuple(_TABLE_AXES)  # the arrays written once, at creation
METADATA = tuple(f"{name}/zarr.json" for name in (*ROW_ARRAYS, "units", *TABLES))
_CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
# ids mostly count up: shuffled and compressed they take almost nothing instead of 8 bytes per sample
_COMPRESSORS = {"ids": [BloscCodec(typesize=8, cname="zstd", clevel=5, shuffle="shuffle")]}
# one folder per array to make and flush
_FLAT_KEYS = {"name": "default", "configuration": {"separator": "."}}
_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
)  # what Zarr raises for damaged metadata
_MAX_BLOCK_ROWS = 4096
BACKUP = "backup.json"  # beside the group's metadata: a copy of it as created, with a checksum
RESTORES = "`sskt cache verify {} --repair` restores it"


def default_block_rows(n_samples: int) -> int:
    """Samples per unit: at most 4096, chosen so that the last block is nearly full.

    It does not depend on the number of classes, since stores filled in one pass share their blocks.
    """
    n_blocks = -(-n_samples // _MAX_BLOCK_ROWS)
    return -(-n_samples // n_blocks)


@dataclass(frozen=True, slots=True)
class Layout:
    """The sizes of a store: V views of N samples, B samples per block, and the row format."""

    n_views: int
    n_samples: int
    form: RowFormat
    block_rows: int

    @property
    def n_blocks(self) -> int:
        """Blocks per view; the last may be short."""
        return -(-self.n_samples // self.block_rows)


def require_fitting(path: Location, tables: Mapping[str, NDArray[Any]]) -> None:
    """Raise CacheError unless a new store's tables have their types and shapes and the ids are unique."""
    n, p = len(tables["ids"]), len(tables["probe_ids"])
    shapes = {
        "ids": (n,),
        "contents": (n, 16),
        "probe_ids": (p,),
        "probe": (p, 3, *tables["probe"].shape[2:5]),
    }
    for name, shape in shapes.items():
        table, dtype = tables[name], np.dtype(np.int64 if name.endswith("ids") else np.uint8)
        if table.shape != shape or table.dtype != dtype:
            raise CacheError(
                f"{path}: {name} is {table.shape} {table.dtype}, expected {shape} {dtype}; convert it first"
            )
    if n == 0 or len(np.unique(tables["ids"])) != n:
        raise CacheError(
            f"{path}: {n} sample ids, expected at least one and none twice; index the target again"
        )


def create_group(
    path: Location, manifest: Manifest, layout: Layout, tables: Mapping[str, NDArray[Any]]
) -> dict[str, str] | None:
    """Build an empty store beside `path` and rename it into place; returns its tables' sha256, or None if
    something was there first.

    In an object store the files are written one by one, see `_upload`. Raises CacheError, leaving nothing
    behind, if the folder cannot be written.
    """
    try:
        sums = {name: table_sha256(table) for name, table in tables.items()}
        folder, files = local_path(path), _build(manifest, layout, tables, sums)
        if folder is None:
            return sums if _upload(path, files) else None
        folder.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(folder) as temporary:
            for name, content in files.items():
                (temporary / name).parent.mkdir(exist_ok=True)
                (temporary / name).write_bytes(content)
            _warn_unless_exclusive(path, temporary / BACKUP)
            sync_tree(temporary)
            return sums if _moved_into_place(temporary, folder) else None
    except OSError as error:
        raise CacheError(
            f"{path}: the store cannot be created ({error.strerror or error}); "
            f"make room, or choose a cache folder that can be written"
        ) from error


def read_group(path: Location) -> tuple[Manifest, Layout, dict[str, str]]:
    """The manifest, the sizes and the tables' sha256; StoreDamaged if `path` is not a sound store.

    On a mismatch it reads once more, since another process may have changed the number of views meanwhile.
    """
    try:
        return _read_group(path)
    except StoreDamaged:
        return _read_group(path)


def _read_group(path: Location) -> tuple[Manifest, Layout, dict[str, str]]:
    try:
        found = _read_present(path, ["zarr.json", *METADATA])
        if "zarr.json" not in found:
            remedy = RESTORES.format(path) if is_file(path / BACKUP) else "precompute makes one"
            raise StoreDamaged(f"{path}: is not a store, it has no zarr.json; {remedy}")
        group = zarr.open_group(_in_memory(found), mode="r", zarr_format=3)
        attributes = group.attrs.asdict()
        rows = next((name for name in ROW_ARRAYS if f"{name}/zarr.json" in found), LOGITS)
        arrays = {name: _array(group, name) for name in (rows, "units", *TABLES)}
    except _UNREADABLE as error:
        raise StoreDamaged(
            f"{path}: is not a readable store ({_first_line(error)}); {RESTORES.format(path)}"
        ) from error
    manifest = Manifest.from_dict(_attribute(path, attributes, MANIFEST), path)
    sums = {name: str(value) for name, value in _attribute(path, attributes, TABLES_SHA256).items()}
    _require_sum(path, attributes)
    return manifest, _sound_layout(path, arrays, attributes.get(N_CLASSES)), sums


def read_table(path: Location, name: str, sha256: str | None) -> NDArray[Any]:
    """Read an array that was written at creation; StoreDamaged unless its bytes are the ones written.

    The sha256 is needed besides Zarr's checksum, since a chunk whose file is missing reads as zeros.
    """
    try:
        chunks = [f"{name}/{_only_chunk(n_axes)}" for n_axes in _TABLE_AXES[name]]
        store = _in_memory(_read_present(path, [f"{name}/zarr.json", *chunks]))
        table = np.asarray(zarr.open_array(store, path=name, mode="r", zarr_format=3)[...])
    except _UNREADABLE as error:
        raise StoreDamaged(
            f"{path / name}: cannot be read ({_first_line(error)}); {RESTORES.format(path)}"
        ) from error
    found = table_sha256(table)
    if found != sha256:
        raise StoreDamaged(
            f"{path / name}: was edited or damaged, its values have the sha256 {found[:12]}, "
            f"expected {str(sha256)[:12]}; {RESTORES.format(path)}"
        )
    return table


def write_table(path: Location, name: str, table: NDArray[Any]) -> None:
    """Write a table's only chunk back, as its metadata prescribes; the table must be the original one."""
    files = {
        f"{name}/zarr.json": default_buffer_prototype().buffer.from_bytes(
            read_file(path / name / "zarr.json")
        )
    }
    zarr.open_array(MemoryStore(files), path=name, mode="r+", zarr_format=3)[...] = table
    chunk = f"{name}/{_only_chunk(table.ndim)}"
    if chunk in files:
        write_durably(path / chunk, files[chunk].to_bytes())
    else:  # Zarr omits a chunk of zeros
        delete_file(path / chunk)


def table_sha256(table: NDArray[Any]) -> str:
    """The sha256 of an array's little-endian bytes in C order."""
    little = table.astype(table.dtype.newbyteorder("<"), copy=False)
    return hashlib.sha256(np.ascontiguousarray(little).tobytes()).hexdigest()


def set_views(path: Location, name: str, n_views: int) -> None:
    """Set an array's first length; Zarr's resize is not flushed, and deletes chunks when it shrinks."""
    metadata = json.loads(read_file(path / name / "zarr.json"))
    metadata["shape"][0] = n_views
    write_durably(path / name / "zarr.json", json.dumps(metadata, indent=2).encode())


def backup_of(files: dict[str, str]) -> bytes:
    """The content of BACKUP: the text of every zarr.json, by its path in the store, and their sha256."""
    sha256 = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    return json.dumps({"files": files, "sha256": sha256}).encode()


def _build(
    manifest: Manifest, layout: Layout, tables: Mapping[str, NDArray[Any]], sums: dict[str, str]
) -> dict[str, bytes]:
    """The files of a new store."""
    v, n, b, form = layout.n_views, layout.n_samples, layout.block_rows, layout.form
    attributes = {
        MANIFEST: manifest.to_dict(),
        TABLES_SHA256: sums,
        N_CLASSES: form.n_classes,
    }
    attributes[ATTRIBUTES_SHA256] = digest(attributes)
    built: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(built), zarr_format=3, attributes=attributes)
    shape, chunks = (v, n, form.width), (1, b, form.width)
    _create(group, form.array, form.dtype.name, shape=shape, chunks=chunks, fill=form.fill)
    _create(group, "units", "uint64", shape=(v, layout.n_blocks), chunks=(1, 1), fill=0)
    for name, table in tables.items():
        _create_table(group, name, table)
    files = {name: content.to_bytes() for name, content in sorted(built.items())}
    copied = {name: content.decode() for name, content in files.items() if name.endswith("zarr.json")}
    return {**files, BACKUP: backup_of(copied)}


def _upload(path: Location, files: dict[str, bytes]) -> bool:
    """Write a new store's files: the group's zarr.json after the arrays', since it makes the store, and the
    backup last; False if another process's zarr.json was there first. Processes that start together write the
    same arrays, and a zarr.json and a backup that hold another time: only one of them writes those.
    """
    backup, group = files.pop(BACKUP), files.pop("zarr.json")
    at_once(lambda name: write_durably(path / name, files[name]), [*files], path)
    _warn_unless_exclusive(path, path / "units" / "zarr.json", files["units/zarr.json"])
    if not create_durably(path / "zarr.json", group):
        return False
    write_durably(path / BACKUP, backup)
    return True


def _warn_unless_exclusive(path: Location, file: Location, content: bytes = b"") -> None:
    """Say what it means if the storage cannot create a file exclusively; `file`: one with this content, which
    every process that makes this store writes.
    """
    if not excludes(file, content):
        log.warning(
            f"{path}: this storage cannot create a file only where there is none (hard links, or puts with "
            f"If-None-Match), so two processes that write one unit at the same moment may damage it, which "
            f"is noticed when it is read; give each process its own share of the units (RANK and WORLD_SIZE)"
        )


def _create_table(group: zarr.Group, name: str, table: NDArray[Any]) -> None:
    chunks = tuple(max(1, length) for length in table.shape)
    _create(group, name, table.dtype.name, shape=table.shape, chunks=chunks, fill=0)[...] = table


def _only_chunk(n_axes: int) -> str:
    """The file name of a table's one chunk."""
    return ".".join(["c"] + ["0"] * n_axes)


def _read_present(path: Location, names: Sequence[str]) -> dict[str, bytes]:
    """Small files of a store by name, those that there are, local or remote."""
    read = zip(names, read_files([path / name for name in names]), strict=True)
    return {name: content for name, content in read if content is not None}


def _in_memory(files: Mapping[str, bytes]) -> MemoryStore:
    """Small files of a store for Zarr to read."""
    buffer = default_buffer_prototype().buffer
    return MemoryStore({name: buffer.from_bytes(content) for name, content in files.items()}, read_only=True)


def _create(
    group: zarr.Group, name: str, dtype: str, *, shape: tuple[int, ...], chunks: tuple[int, ...], fill: float
) -> zarr.Array[Any]:
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        fill_value=fill,
        serializer=BytesCodec(endian=None if dtype == "uint8" else "little"),
        compressors=[*_COMPRESSORS.get(name, []), Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "."},
    )


def _moved_into_place(temporary: Path, path: Path) -> bool:
    try:
        temporary.rename(path)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            return False
        raise
    sync_folder(path.parent)
    return True


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise TypeError(f"{name} is no array")
    return array


def _attribute(path: Location, attributes: dict[str, Any], name: str) -> dict[str, Any]:
    found = attributes.get(name)
    if not isinstance(found, dict):
        raise StoreDamaged(
            f"{path}: is not a store of logits, its zarr.json has no attribute {name!r}; precompute makes one"
        )
    return found


def _require_sum(path: Location, attributes: dict[str, Any]) -> None:
    """StoreDamaged unless the attributes are the ones written; older stores have no such sum."""
    others = {name: value for name, value in attributes.items() if name != ATTRIBUTES_SHA256}
    stated = str(attributes.get(ATTRIBUTES_SHA256, digest(others)))
    if digest(others) != stated:
        raise StoreDamaged(
            f"{path}: its attributes were edited or damaged, they have the sha256 {digest(others)[:12]}, "
            f"expected {stated[:12]}; {RESTORES.format(path)}"
        )


def _sound_layout(path: Location, arrays: Mapping[str, zarr.Array[Any]], n_classes: object) -> Layout:
    """The sizes according to the arrays; StoreDamaged unless these are consistent."""
    name = next(name for name in ROW_ARRAYS if name in arrays)
    rows, units = arrays[name], arrays["units"]
    if rows.ndim != 3 or units.ndim != 2:
        raise StoreDamaged(
            f"{path}: {name} and units have {rows.ndim} and {units.ndim} axes, expected 3 and 2; "
            f"{RESTORES.format(path)}"
        )
    width = rows.shape[2]
    n_classes = width if n_classes is None and name == LOGITS else n_classes  # stores from before top-k
    if not isinstance(n_classes, int):
        raise StoreDamaged(f"{path}: its attribute {N_CLASSES} is {n_classes!r}; {RESTORES.format(path)}")
    if name == "topk":
        form = RowFormat(n_classes, (width - TAIL_NUMBERS) // 2)
    else:
        form = RowFormat(n_classes, kind=name)
    # one may be ahead: after a kill while it was grown or cut, or where two processes without locks grew it
    layout = Layout(min(units.shape[0], rows.shape[0]), rows.shape[1], form, rows.chunks[1])
    wanted = {
        name: (form.dtype.name, (*rows.shape[:2], form.width), (1, layout.block_rows, form.width)),
        "units": ("uint64", (units.shape[0], layout.n_blocks), (1, 1)),
    }
    for name, (dtype, shape, chunks) in wanted.items():
        _require(path, f"{name}'s type", arrays[name].dtype.name, dtype)
        _require(path, f"{name}'s shape", arrays[name].shape, shape)
        _require(path, f"{name}'s chunks", arrays[name].chunks, chunks)
        metadata = json.loads(json.dumps(arrays[name].metadata.to_dict(), default=str))
        _require(path, f"{name}'s codecs", metadata["codecs"], _CODECS)
        _require(path, f"{name}'s chunk keys", metadata["chunk_key_encoding"], _FLAT_KEYS)
    _require(path, "ids' shape", arrays["ids"].shape, (layout.n_samples,))
    _require(path, "contents' shape", arrays["contents"].shape, (layout.n_samples, 16))
    _require(path, "number of probe pictures", arrays["probe"].shape[:1], arrays["probe_ids"].shape)
    return layout


def _require(path: Location, what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise StoreDamaged(f"{path}: its {what} is {found}, expected {wanted}; {RESTORES.format(path)}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
