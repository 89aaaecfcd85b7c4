"""The Zarr v3 group behind a store: which arrays it has, how a new one is put in place, how an existing one is checked.

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
_KEYS = {"name": "default", "configuration": {"separator": "."}}  # one flat folder an array: one folder to flush
_MAX_BLOCK_ROWS = 4096
_MAX_BLOCK_BYTES = 16 << 20  # a kill costs at most one unit, a unit is held in memory once per source


def default_block_rows(n_samples: int, n_classes: int) -> int:
    """Samples per unit: at most 4096 and 16 MiB, chosen so that the last block is nearly full."""
    most = max(1, min(_MAX_BLOCK_ROWS, _MAX_BLOCK_BYTES // (2 * n_classes)))
    return math.ceil(n_samples / math.ceil(n_samples / most))


@dataclass(frozen=True, slots=True)
class Layout:
    """The sizes of a store: V views of N samples of K classes, B samples to a block."""

    n_views: int
    n_samples: int
    n_classes: int
    block_rows: int

    @property
    def n_blocks(self) -> int:
        """Blocks a view; the last may be short."""
        return math.ceil(self.n_samples / self.block_rows)


def create_group(path: Path, manifest: Manifest, layout: Layout, tables: Mapping[str, NDArray[Any]]) -> bool:
    """Build an empty store beside `path` and rename it into place; False if another store was there or got there first.

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
            f"{path}: the store cannot be created ({error.strerror or error}); choose a cache folder that can be written"
        ) from error


def read_group(path: Path) -> tuple[Manifest, Layout, dict[str, str]]:
    """The manifest, the sizes and the tables' sha256 of the store at `path`; StoreDamaged if it is not a sound store."""
    if not (path / "zarr.json").is_file():
        raise StoreDamaged(f"{path}: is not a store, it has no zarr.json; precompute makes one")
    try:
        group = zarr.open_group(LocalStore(path, read_only=True), mode="r", zarr_format=3)
        attributes = group.attrs.asdict()
        logits, units = _array(group, "logits"), _array(group, "units")
        tables = {name: _array(group, name) for name in TABLES}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreDamaged(f"{path}: is not a readable store ({_first_line(error)}); precompute it again") from error
    manifest = Manifest.from_dict(_mapping(path, attributes, MANIFEST), path)
    if logits.ndim != 3:
        raise StoreDamaged(f"{path}: logits has {logits.ndim} axes, expected 3; precompute it again")
    layout = Layout(units.shape[0], logits.shape[1], logits.shape[2], logits.chunks[1])
    _require_layout(path, layout, logits, units, tables)
    return manifest, layout, {k: str(v) for k, v in _mapping(path, attributes, TABLES_SHA256).items()}


def read_table(path: Path, name: str, sha256: str | None) -> NDArray[Any]:
    """One of the arrays that were written at creation; StoreDamaged unless its bytes are the ones written.

    The sha256 is needed beside Zarr's checksum, as a chunk whose file is gone reads as zeros.
    """
    try:
        table = np.asarray(zarr.open_array(LocalStore(path, read_only=True), path=name, mode="r", zarr_format=3)[...])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreDamaged(f"{path / name}: cannot be read ({_first_line(error)}); precompute the store again") from error
    if table_sha256(table) != sha256:
        raise StoreDamaged(
            f"{path / name}: was edited or damaged, its values have the sha256 {table_sha256(table)[:12]}, expected "
            f"{str(sha256)[:12]}; precompute the store again"
        )
    return table


def table_sha256(table: NDArray[Any]) -> str:
    """The sha256 of an array's little-endian bytes in C order."""
    return hashlib.sha256(np.ascontiguousarray(table, dtype=table.dtype.newbyteorder("<")).tobytes()).hexdigest()


def set_views(path: Path, name: str, n_views: int) -> None:
    """Set the length of an array's first axis; Zarr's own resize is not flushed and deletes chunks when it shrinks."""
    metadata = json.loads((path / name / "zarr.json").read_text())
    metadata["shape"][0] = n_views
    write_durably(path / name / "zarr.json", json.dumps(metadata, indent=2).encode())


def _build(path: Path, manifest: Manifest, layout: Layout, tables: Mapping[str, NDArray[Any]]) -> None:
    views, samples, classes = layout.n_views, layout.n_samples, layout.n_classes
    sums = {name: table_sha256(table) for name, table in tables.items()}
    group = zarr.create_group(
        LocalStore(path), zarr_format=3, attributes={MANIFEST: manifest.to_dict(), TABLES_SHA256: sums}
    )
    _create(group, "logits", (views, samples, classes), "float16", (1, layout.block_rows, classes), float("nan"))
    _create(group, "units", (views, layout.n_blocks), "uint64", (1, 1), 0)
    for name, table in tables.items():
        chunks = tuple(max(1, length) for length in table.shape)
        _create(group, name, table.shape, table.dtype.name, chunks, 0)[...] = table
    for name in ("logits", "units"):
        (path / name / "c").mkdir(exist_ok=True)


def _create(
    group: zarr.Group, name: str, shape: tuple[int, ...], dtype: str, chunks: tuple[int, ...], fill: float
) -> zarr.Array[Any]:
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        fill_value=fill,
        serializer=BytesCodec(endian="little") if dtype != "uint8" else BytesCodec(endian=None),
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


def _mapping(path: Path, attributes: dict[str, Any], name: str) -> dict[str, Any]:
    found = attributes.get(name)
    if not isinstance(found, dict):
        raise StoreDamaged(f"{path}: is not a store of this program, its zarr.json has no attribute {name!r}")
    return found


def _require_layout(
    path: Path, layout: Layout, logits: zarr.Array[Any], units: zarr.Array[Any], tables: Mapping[str, zarr.Array[Any]]
) -> None:
    """Raise StoreDamaged unless the arrays fit each other; `logits` may be ahead by views, as it grows first."""
    views, samples = layout.n_views, layout.n_samples
    expected: dict[str, tuple[Any, Any]] = {
        "logits dtype": (logits.dtype.name, "float16"),
        "logits chunks": (logits.chunks, (1, layout.block_rows, layout.n_classes)),
        "units dtype": (units.dtype.name, "uint64"),
        "units shape": (units.shape, (views, layout.n_blocks)),
        "units chunks": (units.chunks, (1, 1)),
        "logits views": (max(logits.shape[0], views), logits.shape[0]),
        "ids shape": (tables["ids"].shape, (samples,)),
        "contents shape": (tables["contents"].shape, (samples, 16)),
        "probe samples": (tables["probe"].shape[:1], tables["probe_ids"].shape),
    }
    for name, array in (("logits", logits), ("units", units)):
        metadata = array.metadata.to_dict()
        expected[f"{name} codecs"] = (list(map(dict, metadata["codecs"])), _CODECS)  # type: ignore[arg-type]
        expected[f"{name} chunk keys"] = (metadata["chunk_key_encoding"], _KEYS)
    for what, (found, wanted) in expected.items():
        if found != wanted:
            raise StoreDamaged(f"{path}: its {what} is {found}, expected {wanted}; precompute it again")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
