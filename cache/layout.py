"""The Zarr v3 group behind a store: its arrays, how a new one comes into place, how one is checked.

docs/store-format.md says the same for readers in other languages.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.storage import LocalStore

from cache.errors import CacheError, StoreDamaged
from cache.files import sync_folder, sync_tree, temporary_sibling, write_durably
from cache.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

MANIFEST = "sskt"  # the group attribute that holds the manifest
TABLES_SHA256 = "tables_sha256"  # the group attribute that holds one sha256 per table
TABLES = ("ids", "contents", "probe_ids", "probe")  # the arrays written once, at creation
_CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
_FLAT_KEYS = {"name": "default", "configuration": {"separator": "."}}  # one folder an array to make and flush
_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
)  # what Zarr raises for damaged metadata
_MAX_BLOCK_ROWS = 4096


def default_block_rows(n_samples: int) -> int:
    """Samples per unit: at most 4096, chosen so that the last block is nearly full.

    Not a matter of the number of classes: stores filled in one pass share their blocks.
    """
    return math.ceil(n_samples / math.ceil(n_samples / _MAX_BLOCK_ROWS))


@dataclass(frozen=True, slots=True)
class Layout:
    """The sizes of a store: V views of N samples of K classes, B samples to a block."""

    n_views: int
    n_samples: int
    n_classes: int
    block_rows: int

    @property
    def n_blocks(self) -> int:
        """Blocks to a view; the last may be short."""
        return math.ceil(self.n_samples / self.block_rows)


def require_fitting(path: Path, tables: Mapping[str, NDArray[Any]]) -> None:
    """Raise CacheError unless a new store's tables have their types and shapes and the ids are unique."""
    n, p = len(tables["ids"]), len(tables["probe_ids"])
    shapes = {
        "ids": (n,),
        "contents": (n, 16),
        "probe_ids": (p,),
        "probe": (p, 3, *tables["probe"].shape[2:4]),
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


def create_group(path: Path, manifest: Manifest, layout: Layout, tables: Mapping[str, NDArray[Any]]) -> bool:
    """Build an empty store beside `path` and rename it there; False if something was there first.

    Raises CacheError, leaving nothing behind, if the folder cannot be written.
    """
    temporary = temporary_sibling(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _build(temporary, manifest, layout, tables)
            sync_tree(temporary)
            return _moved_into_place(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise CacheError(
            f"{path}: the store cannot be created ({error.strerror or error}); "
            f"make room, or choose a cache folder that can be written"
        ) from error


def read_group(path: Path) -> tuple[Manifest, Layout, dict[str, str]]:
    """The manifest, the sizes and the tables' sha256; StoreDamaged if `path` is not a sound store."""
    if not (path / "zarr.json").is_file():
        raise StoreDamaged(f"{path}: is not a store, it has no zarr.json; precompute makes one")
    try:
        group = zarr.open_group(LocalStore(path, read_only=True), mode="r", zarr_format=3)
        attributes = group.attrs.asdict()
        arrays = {name: _array(group, name) for name in ("logits", "units", *TABLES)}
    except _UNREADABLE as error:
        raise StoreDamaged(
            f"{path}: is not a readable store ({_first_line(error)}); precompute it again"
        ) from error
    manifest = Manifest.from_dict(_attribute(path, attributes, MANIFEST), path)
    sums = {name: str(value) for name, value in _attribute(path, attributes, TABLES_SHA256).items()}
    return manifest, _sound_layout(path, arrays), sums


def read_table(path: Path, name: str, sha256: str | None) -> NDArray[Any]:
    """One of the arrays that were written at creation; StoreDamaged unless its bytes are the ones written.

    The sha256 is needed beside Zarr's checksum, as a chunk whose file is gone reads as zeros.
    """
    store = LocalStore(path, read_only=True)
    try:
        table = np.asarray(zarr.open_array(store, path=name, mode="r", zarr_format=3)[...])
    except _UNREADABLE as error:
        raise StoreDamaged(
            f"{path / name}: cannot be read ({_first_line(error)}); precompute the store again"
        ) from error
    found = table_sha256(table)
    if found != sha256:
        raise StoreDamaged(
            f"{path / name}: was edited or damaged, its values have the sha256 {found[:12]}, "
            f"expected {str(sha256)[:12]}; precompute the store again"
        )
    return table


def table_sha256(table: NDArray[Any]) -> str:
    """The sha256 of an array's little-endian bytes in C order."""
    little = table.astype(table.dtype.newbyteorder("<"), copy=False)
    return hashlib.sha256(np.ascontiguousarray(little).tobytes()).hexdigest()


def set_views(path: Path, name: str, n_views: int) -> None:
    """Set an array's first length; Zarr's own resize is not flushed, and deletes chunks when it shrinks."""
    metadata = json.loads((path / name / "zarr.json").read_text())
    metadata["shape"][0] = n_views
    write_durably(path / name / "zarr.json", json.dumps(metadata, indent=2).encode())


def _build(path: Path, manifest: Manifest, layout: Layout, tables: Mapping[str, NDArray[Any]]) -> None:
    v, n, k, b = layout.n_views, layout.n_samples, layout.n_classes, layout.block_rows
    sums = {name: table_sha256(table) for name, table in tables.items()}
    attributes = {MANIFEST: manifest.to_dict(), TABLES_SHA256: sums}
    group = zarr.create_group(LocalStore(path), zarr_format=3, attributes=attributes)
    _create(group, "logits", "float16", shape=(v, n, k), chunks=(1, b, k), fill=float("nan"))
    _create(group, "units", "uint64", shape=(v, layout.n_blocks), chunks=(1, 1), fill=0)
    for name, table in tables.items():
        chunks = tuple(max(1, length) for length in table.shape)
        _create(group, name, table.dtype.name, shape=table.shape, chunks=chunks, fill=0)[...] = table


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
        compressors=[Crc32cCodec()],
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


def _attribute(path: Path, attributes: dict[str, Any], name: str) -> dict[str, Any]:
    found = attributes.get(name)
    if not isinstance(found, dict):
        raise StoreDamaged(
            f"{path}: is not a store of logits, its zarr.json has no attribute {name!r}; precompute makes one"
        )
    return found


def _sound_layout(path: Path, arrays: Mapping[str, zarr.Array[Any]]) -> Layout:
    """The sizes, from the arrays; StoreDamaged unless these fit each other."""
    logits, units = arrays["logits"], arrays["units"]
    if logits.ndim != 3 or units.ndim != 2:
        raise StoreDamaged(
            f"{path}: logits and units have {logits.ndim} and {units.ndim} axes, expected 3 and 2; "
            f"precompute it again"
        )
    layout = Layout(units.shape[0], logits.shape[1], logits.shape[2], logits.chunks[1])
    # `logits` may be ahead of `units` by some views: it grows first, and a kill in between must not matter.
    views = max(layout.n_views, logits.shape[0])
    wanted = {
        "logits": ("float16", (views, *logits.shape[1:]), (1, layout.block_rows, layout.n_classes)),
        "units": ("uint64", (layout.n_views, layout.n_blocks), (1, 1)),
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


def _require(path: Path, what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise StoreDamaged(f"{path}: its {what} is {found}, expected {wanted}; precompute it again")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
