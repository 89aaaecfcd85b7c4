"""A store: the float16 logits of one source for every view of every sample, in units that are whole or do not count.

DESIGN promise 4. Writing is unit by unit, reading a whole view. Opening and creating use Zarr; the rows themselves move
as plain files (cache/unit.py), so nothing here needs Zarr's event loop while a pipeline runs. Repair, pruning and object
stores are not here.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

from cache import layout as layouts
from cache.errors import CacheError, StoreDamaged, StoreIncomplete, StoreMismatch
from cache.files import TEMPORARY
from cache.layout import Layout, default_block_rows
from cache.manifest import require_match
from cache.unit import (
    Unit,
    UnitFault,
    n_non_finite,
    padding_of,
    payload_crc,
    read_entry,
    read_payload,
    write_entry,
    write_payload,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

    from cache.manifest import Manifest


class Problem(NamedTuple):
    """One finding of `Store.verify`; `unit` is None when it is about the store as a whole."""

    unit: Unit | None
    what: str


class Probe(NamedTuple):
    """A few samples of view 0 as they were rendered when the store was made."""

    ids: NDArray[np.int64]  # (P,)
    pixels: NDArray[np.uint8]  # (P, 3, H, W)


class Store:
    """An open store; made by `Store.create` or `Store.open`. Sizes are as of then, or as of this object's last `grow`."""

    def __init__(self, path: Path, manifest: Manifest, layout: Layout, tables_sha256: dict[str, str]) -> None:
        self.path = path
        self.manifest = manifest
        self._layout = layout
        self._tables_sha256 = tables_sha256

    @classmethod
    def create(
        cls,
        path: Path,
        manifest: Manifest,
        *,
        ids: NDArray[np.int64],
        contents: NDArray[np.uint8],
        n_classes: int,
        views: int,
        block_rows: int | None = None,
        probe: Probe | None = None,
    ) -> Self:
        """Make an empty store at `path`, or open the one that is there (or that another process makes first).

        ids: (N,) int64, unique; contents: (N, 16) uint8, what identifies each sample's picture. Raises StoreMismatch if the
        store that is there has another identity or other ids, CacheError if the folder cannot be written.
        """
        if probe is None:
            probe = Probe(np.empty(0, np.int64), np.empty((0, 3, 1, 1), np.uint8))
        tables = {"ids": ids, "contents": contents, "probe_ids": probe.ids, "probe": probe.pixels}
        _require_sound_tables(tables, path)
        if n_classes < 1 or views < 1 or (block_rows is not None and block_rows < 1):
            raise CacheError(
                f"{path}: {n_classes} classes, {views} views, {block_rows} rows a block; each must be at least 1"
            )
        layout = Layout(views, len(ids), n_classes, block_rows or default_block_rows(len(ids), n_classes))
        if not path.exists() and layouts.create_group(path, manifest, layout, tables):
            return cls.open(path)
        store = cls.open(path)
        require_match(path, store.manifest.identity, manifest.identity)
        if (store.n_samples, store.n_classes) != (len(ids), n_classes) or not np.array_equal(store.ids, ids):
            raise StoreMismatch(
                f"{path}: holds {store.n_samples} samples of {store.n_classes} classes, this run has {len(ids)} of {n_classes} "
                f"or other sample ids; precompute into another cache folder"
            )
        store.grow(views)
        return store

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a store to read or to go on writing; StoreDamaged if it is none, was edited or is of a newer format."""
        return cls(path, *layouts.read_group(path))

    @property
    def n_views(self) -> int:
        """V: views the store has room for."""
        return self._layout.n_views

    @property
    def n_samples(self) -> int:
        """N: samples of every view."""
        return self._layout.n_samples

    @property
    def n_classes(self) -> int:
        """K: the source's classes."""
        return self._layout.n_classes

    @property
    def block_rows(self) -> int:
        """B: samples to a unit; the last block of a view may hold fewer."""
        return self._layout.block_rows

    @property
    def n_blocks(self) -> int:
        """Units to a view."""
        return self._layout.n_blocks

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """(N,) int64: the sample id of every row, read and checked at first use."""
        return self._table("ids")

    @cached_property
    def contents(self) -> NDArray[np.uint8]:
        """(N, 16) uint8: what identifies each sample's picture."""
        return self._table("contents")

    @cached_property
    def probe_ids(self) -> NDArray[np.int64]:
        """(P,) int64: the samples of the probe; P is 0 for a store made without."""
        return self._table("probe_ids")

    @cached_property
    def probe(self) -> NDArray[np.uint8]:
        """(P, 3, H, W) uint8: view 0 of the probe's samples as rendered when the store was made."""
        return self._table("probe")

    @property
    def nbytes(self) -> int:
        """Bytes of all files of the store."""
        sizes = (_size(Path(folder) / name) for folder, _, names in os.walk(self.path) for name in names)
        return sum(sizes)

    @property
    def complete(self) -> bool:
        """Whether every unit of every view is finished."""
        return not self.pending(self.n_views)

    def pending(self, views: int) -> list[Unit]:
        """The unfinished units of the first `views` views, view by view; StoreDamaged if an entry is damaged."""
        units = (Unit(view, block) for view in range(views) for block in range(self.n_blocks))
        return [unit for unit in units if self._entry(unit) is None]

    def rows_of(self, block: int) -> slice:
        """The rows of `ids` and of a view that a block holds."""
        return slice(block * self.block_rows, min((block + 1) * self.block_rows, self.n_samples))

    def positions_of(self, ids: ArrayLike) -> NDArray[np.int64]:
        """The row of each sample id, in the order asked; StoreMismatch naming the first id that the store lacks."""
        wanted = np.asarray(ids, dtype=np.int64)
        order, in_order = self._sorted_ids
        places = np.minimum(np.searchsorted(in_order, wanted), self.n_samples - 1)
        absent = np.flatnonzero(in_order[places] != wanted)
        if len(absent):
            raise StoreMismatch(
                f"{self.path}: has no row for sample id {wanted[absent[0]]} ({len(absent)} of {len(wanted)} ids are absent); "
                f"precompute this set of samples, or pass --labels live"
            )
        return order[places]

    def view(self, view: int) -> NDArray[np.float16]:
        """One whole view, (N, K) float16, every byte checked.

        Raises StoreIncomplete if a unit is not finished or the store has no such view, StoreDamaged naming the unit and the
        file if what was finished is not what is there.
        """
        if not 0 <= view < self.n_views:
            raise StoreIncomplete(
                f"{self.path}: has no view {view}, it has {self.n_views} (from 0); precompute with at least "
                f"--views {view + 1}, or pass --labels live"
            )
        entries = [self._entry(Unit(view, block)) for block in range(self.n_blocks)]
        if None in entries:
            raise StoreIncomplete(
                f"{self.path}: view {view} lacks {entries.count(None)} of {self.n_blocks} units; run the same precompute again "
                f"to finish it, or pass --labels live"
            )
        out = np.empty((self.n_samples, self.n_classes), dtype=np.float16)
        for block, entry in enumerate(entries):
            fault = self._fault(Unit(view, block), entry, out[self.rows_of(block)])
            if fault:
                raise StoreDamaged(self._damage(Unit(view, block), fault))
        return out

    def write_unit(self, unit: Unit, logits: NDArray[np.float16]) -> None:
        """Finish a unit: its file, flushed to the disk, then its entry. logits: (rows of the block, K) float16, finite.

        A finished unit is never overwritten: the same rows again change nothing (or heal a file that was lost since), other
        rows raise CacheError. A full or read-only disk raises CacheError and leaves every finished unit as it was.
        """
        self._require_rows(unit, logits)
        rows = np.ascontiguousarray(logits)
        padding = padding_of(len(rows), self.block_rows, self.n_classes)
        crc = payload_crc(rows, padding)
        entry = self._entry(unit)
        if entry is not None and entry != crc:
            raise CacheError(
                f"{self.path}: {unit} is finished with checksum {entry:08x} and these rows have {crc:08x}; a finished unit is "
                f"never overwritten: delete {self._entry_path(unit)} to have it computed again"
            )
        if entry is not None and self._fault(unit, entry, np.empty_like(rows)) is None:
            return
        try:
            write_payload(self._payload_path(unit), rows, padding, crc)
            write_entry(self._entry_path(unit), crc)
        except OSError as error:
            raise CacheError(
                f"{self.path}: {unit} cannot be written ({error.strerror or error}); make room or make the folder writable and "
                f"run the same command again, finished units are kept"
            ) from error

    def grow(self, views: int) -> None:
        """Make room for `views` views in all; fewer than there are change nothing. Finished units stay as they are."""
        if views <= self.n_views:
            return
        self._layout = layouts.read_group(self.path)[1]  # another process may have grown it further meanwhile
        if views <= self.n_views:
            return
        try:
            for name in ("logits", "units"):  # in this order: a kill in between leaves a store that opens, not yet grown
                layouts.set_views(self.path, name, views)
        except OSError as error:
            raise CacheError(f"{self.path}: cannot be grown to {views} views ({error.strerror or error})") from error
        self._layout = layouts.read_group(self.path)[1]

    def verify(self) -> list[Problem]:
        """Everything that is wrong on disk, unfinished units aside; empty if all is sound. Raises nothing for damage."""
        problems = []
        try:
            fresh = Store.open(self.path)
        except StoreDamaged as error:
            return [Problem(None, str(error))]
        for name in layouts.TABLES:
            try:
                fresh._table(name)
            except StoreDamaged as error:
                problems.append(Problem(None, str(error)))
        return problems + list(fresh._unit_problems())

    def _unit_problems(self) -> Iterator[Problem]:
        buffer = np.empty((self.block_rows, self.n_classes), dtype=np.float16)
        for unit in (Unit(view, block) for view in range(self.n_views) for block in range(self.n_blocks)):
            rows = buffer[: _length(self.rows_of(unit.block))]
            try:
                entry = read_entry(self._entry_path(unit))
            except UnitFault as fault:
                yield Problem(unit, self._damage(unit, str(fault)))
                continue
            if entry is None:
                continue
            fault_of_file = self._fault(unit, entry, rows)
            if fault_of_file is None and n_non_finite(rows):
                fault_of_file = f"{n_non_finite(rows)} of its {len(rows)} rows hold NaN or inf"
            if fault_of_file is not None:
                yield Problem(unit, self._damage(unit, fault_of_file))

    def _entry(self, unit: Unit) -> int | None:
        try:
            return read_entry(self._entry_path(unit))
        except UnitFault as fault:
            raise StoreDamaged(self._damage(unit, str(fault))) from None

    def _fault(self, unit: Unit, entry: int | None, out: NDArray[np.float16]) -> str | None:
        """Fill `out` with a unit's rows and say what is wrong with them, if anything is."""
        try:
            crc = read_payload(self._payload_path(unit), out, self.block_rows)
        except UnitFault as fault:
            return str(fault)
        return None if crc == entry else f"its file has the checksum {crc:08x}, its entry states {entry:08x}"

    def _damage(self, unit: Unit, fault: str) -> str:
        return (
            f"{self.path}: {unit}, file {self._payload_path(unit).relative_to(self.path)}: {fault}; to have just this unit "
            f"computed again, delete {self._entry_path(unit)} and run the same precompute again"
        )

    def _require_rows(self, unit: Unit, logits: NDArray[np.float16]) -> None:
        if not (0 <= unit.view < self.n_views and 0 <= unit.block < self.n_blocks):
            raise CacheError(f"{self.path}: has no {unit}, only {self.n_views} views of {self.n_blocks} blocks; grow it first")
        expected = (_length(self.rows_of(unit.block)), self.n_classes)
        if logits.shape != expected or logits.dtype != np.float16:
            raise CacheError(
                f"{self.path}: {unit} takes {expected} float16, it was given {logits.shape} {logits.dtype}; convert it first"
            )
        n_bad = n_non_finite(logits)
        if n_bad:
            raise CacheError(
                f"{self.path}: {unit}: {n_bad} of {len(logits)} rows hold NaN or inf; a source that gives such logits in its "
                f"compute precision cannot be cached, try --amp fp32"
            )

    def _table(self, name: str) -> NDArray[np.generic]:
        return layouts.read_table(self.path, name, self._tables_sha256.get(name))

    @cached_property
    def _sorted_ids(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order = np.argsort(self.ids, kind="stable").astype(np.int64)
        return order, self.ids[order]

    def _payload_path(self, unit: Unit) -> Path:
        return self.path / "logits" / f"c.{unit.view}.{unit.block}.0"

    def _entry_path(self, unit: Unit) -> Path:
        return self.path / "units" / f"c.{unit.view}.{unit.block}"


def find_stores(root: Path) -> list[Path]:
    """Every finished store folder below `root`, sorted; unfinished ones and what lies inside a store are not visited."""
    found = []
    for folder, names, _ in os.walk(root):
        names[:] = [name for name in names if TEMPORARY not in name]
        stores = [name for name in names if name.endswith(".zarr")]
        found += [Path(folder) / name for name in stores if (Path(folder) / name / "zarr.json").is_file()]
        names[:] = [name for name in names if name not in stores]
    return sorted(found)
