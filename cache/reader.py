"""The reading half of a store: a whole view or selected rows of it, with every byte checked."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import numpy as np

import cache.layout as layouts
from cache.errors import StoreDamaged, StoreIncomplete, StoreMismatch
from cache.layout import Layout
from cache.repair import metadata_faults
from cache.row_format import RowFormat
from cache.storage import Location, at_once, bytes_below
from cache.unit import Unit, UnitFault, UnitFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from numpy.typing import ArrayLike, NDArray

    from cache.manifest import Manifest
    from cache.row_format import Rows

T = TypeVar("T")


class Problem(NamedTuple):
    """One finding of `Store.verify`; `unit` is None if it concerns the store as a whole."""

    unit: Unit | None
    what: str


class MappedView:
    """Rows of one view, memory-mapped: the operating system reads those that are accessed."""

    def __init__(self, blocks: Mapping[int, Rows], form: RowFormat) -> None:
        self._blocks, self._form = blocks, form
        self._block_rows = max((len(rows) for rows in blocks.values()), default=1)

    def rows(self, rows: NDArray[np.int64]) -> Rows:
        """A copy of these rows of the view, in the order given: (n, K) float16 or (n, 2k + 4) uint16."""
        blocks, places = np.divmod(rows, self._block_rows)
        out = np.empty((len(rows), self._form.width), dtype=self._form.dtype)
        for block in np.unique(blocks):
            here = blocks == block
            out[here] = self._blocks[int(block)][places[here]]
        return out


class StoreReader:
    """An open store; its sizes are as of opening."""

    def __init__(
        self, path: Location, manifest: Manifest, layout: Layout, tables_sha256: dict[str, str]
    ) -> None:
        self.path = path
        self.manifest = manifest
        self._layout = layout
        self._tables_sha256 = tables_sha256
        self._files = UnitFiles(path, layout.block_rows, layout.form)
        self._entries: dict[Unit, int] = {}  # those read, or written, by this object

    @classmethod
    def open(cls, path: Location) -> Self:
        """Open a store to read or continue writing; StoreDamaged if it is none, was edited or is newer."""
        return cls(path, *layouts.read_group(path))

    @property
    def n_views(self) -> int:
        """V: views that the store has room for."""
        return self._layout.n_views

    @property
    def n_samples(self) -> int:
        """N: samples per view."""
        return self._layout.n_samples

    @property
    def n_classes(self) -> int:
        """K: the number of the source's classes, or of the numbers of a representation."""
        return self.form.n_classes

    @property
    def form(self) -> RowFormat:
        """The format of a row."""
        return self._layout.form

    @property
    def top_k(self) -> int | None:
        """How many classes a row holds; None for all."""
        return self.form.top_k

    @property
    def block_rows(self) -> int:
        """B: samples per unit; the last block of a view may hold fewer."""
        return self._layout.block_rows

    @property
    def n_blocks(self) -> int:
        """Units per view."""
        return self._layout.n_blocks

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """(N,) int64: the sample id of every row; read and checked on first use, like the other tables."""
        return self._table("ids")

    @cached_property
    def contents(self) -> NDArray[np.uint8]:
        """(N, 16) uint8: identifies each sample's content."""
        return self._table("contents")

    @cached_property
    def probe_ids(self) -> NDArray[np.int64]:
        """(P,) int64: the sample ids of the probe; P is 0 for a store without one."""
        return self._table("probe_ids")

    @cached_property
    def probe(self) -> NDArray[np.uint8]:
        """(P, 3, H, W) uint8, for clips (P, 3, F, H, W): view 0 of the probe's samples as rendered when the
        store was made.
        """
        return self._table("probe")

    @property
    def tables_sha256(self) -> dict[str, str]:
        """The sha256 of every table as it was written."""
        return dict(self._tables_sha256)

    @property
    def nbytes(self) -> int:
        """Bytes of all files of the store, except those being written."""
        return bytes_below(self.path)

    @property
    def complete(self) -> bool:
        """Whether every unit of every view is finished."""
        return not self.pending(self.n_views)

    @property
    def whole_views(self) -> int:
        """How many leading views are finished; fewer than V while the store is being filled."""
        return min((unit.view for unit in self.pending(self.n_views)), default=self.n_views)

    def pending(self, views: int) -> list[Unit]:
        """The unfinished units of the first `views` views, in order, from one listing; StoreDamaged if an
        entry is damaged. Each entry is read once: a finished unit does not change unless it is repaired.
        """
        listed = self._listed(views)
        self._entries = {unit: entry for unit, entry in self._entries.items() if unit in listed}
        at_once(self._entry, [*listed], self.path)
        return [unit for unit in self._units(views) if unit not in self._entries]

    def finished_units(self) -> list[Unit]:
        """Every finished unit, in order; StoreDamaged if an entry is damaged."""
        left = set(self.pending(self.n_views))
        return [unit for unit in self._units(self.n_views) if unit not in left]

    def finished(self, unit: Unit) -> bool:
        """Whether a unit is finished; StoreDamaged if its entry is damaged."""
        return self._entry(unit) is not None

    def _listed(self, views: int) -> dict[Unit, None]:
        """The units of the first `views` views that have an entry, in order."""
        there = self._files.entries()
        return {unit: None for unit in self._units(views) if self._files.entry(unit).name in there}

    def rows_of(self, block: int) -> slice:
        """The rows of `ids` and of a view that a block holds."""
        return slice(block * self.block_rows, min((block + 1) * self.block_rows, self.n_samples))

    def positions_of(self, ids: ArrayLike) -> NDArray[np.int64]:
        """The row of each sample id, in the order given; StoreMismatch naming the first id without one."""
        wanted = np.asarray(ids, dtype=np.int64)
        order, in_order = self._sorted_ids
        places = np.minimum(np.searchsorted(in_order, wanted), self.n_samples - 1)
        absent = np.flatnonzero(in_order[places] != wanted)
        if len(absent):
            raise StoreMismatch(
                f"{self.path}: has no row for sample id {wanted[absent[0]]} ({len(absent)} of {len(wanted)} "
                f"ids are absent); precompute this set of samples, or pass --labels live"
            )
        return order[places]

    def view(self, view: int) -> Rows:
        """One whole view, every byte checked: (N, K) float16, or (N, 2k + 4) uint16 from a top-k store.

        Raises StoreIncomplete if a unit is unfinished or there is no such view, and StoreDamaged, naming unit
        and file, if a finished unit is not as it was written.
        """
        units = self._finished(view, range(self.n_blocks))
        out = np.empty((self.n_samples, self.form.width), dtype=self.form.dtype)
        self._read_each(units, lambda unit: self._read(unit, out[self.rows_of(unit.block)]))
        return out

    def rows(self, view: int, rows: NDArray[np.int64]) -> Rows:
        """Selected rows of a view, in the order given: (n, K) float16 or (n, 2k + 4) uint16.

        Only the units that hold them are read, and checked as for `view`.
        """
        if len(rows) == self.n_samples and np.array_equal(rows, np.arange(len(rows))):
            return self.view(view)
        blocks = rows // self.block_rows
        out = np.empty((len(rows), self.form.width), dtype=self.form.dtype)

        def read(unit: Unit) -> None:
            block = self._read(unit)
            here = np.flatnonzero(blocks == unit.block)
            out[here] = block[rows[here] - unit.block * self.block_rows]

        self._read_each(self._finished(view, np.unique(blocks).tolist()), read)
        return out

    def mapped(self, view: int, rows: NDArray[np.int64]) -> MappedView:
        """Like `rows`, but memory-mapped: the units that hold them are checked once, then mapped.

        Only for a store in a local folder.
        """
        units = self._finished(view, np.unique(rows // self.block_rows).tolist())
        buffer = np.empty((self.block_rows, self.form.width), dtype=self.form.dtype)
        for unit in units:
            self._read(unit, buffer[: self._n_rows(unit)])
        return MappedView({unit.block: self._files.mapped(unit) for unit in units}, self.form)

    def unit(self, unit: Unit) -> Rows:
        """The rows of one finished unit, checked as for `view`. Raises StoreIncomplete or StoreDamaged."""
        return self._read(unit)

    def verify(self) -> list[Problem]:
        """Every fault on disk, ignoring unfinished units; damage is returned, never raised."""
        try:
            fresh = type(self).open(self.path)
        except StoreDamaged as error:
            return [Problem(None, str(error))]
        problems = list(fresh._problems())
        self._entries = fresh._entries
        return problems

    def _problems(self) -> Iterator[Problem]:
        yield from (Problem(None, fault) for fault in metadata_faults(self.path))
        for name in layouts.TABLES:
            try:
                self._table(name)
            except StoreDamaged as error:
                yield Problem(None, str(error))
        units = [*self._listed(self.n_views)]
        faults = self._read_each(units, lambda u: self._files.fault(u, self._buffer(u), self._entries))
        for unit, fault in zip(units, faults, strict=True):
            if fault:
                yield Problem(unit, self._files.damage(unit, fault))

    def _buffer(self, unit: Unit) -> Rows:
        """A new array for a unit's rows."""
        return np.empty((self._n_rows(unit), self.form.width), dtype=self.form.dtype)

    def _units(self, views: int) -> Iterator[Unit]:
        return (Unit(view, block) for view in range(views) for block in range(self.n_blocks))

    def _finished(self, view: int, blocks: Iterable[int]) -> list[Unit]:
        """Some units of a view; StoreIncomplete unless all are finished."""
        if not 0 <= view < self.n_views:
            raise StoreIncomplete(
                f"{self.path}: has no view {view}, its {self.n_views} views count from 0; "
                f"precompute with a larger --views, or pass --labels live"
            )
        units = [Unit(view, block) for block in blocks]
        n_missing = at_once(self._entry, units, self.path).count(None)
        if n_missing:
            raise StoreIncomplete(
                f"{self.path}: view {view} lacks {n_missing} of {len(units)} units; "
                f"run the same precompute again to finish it, or pass --labels live"
            )
        return units

    def _n_rows(self, unit: Unit) -> int:
        return min(self.block_rows, self.n_samples - unit.block * self.block_rows)

    def _read_each(self, units: list[Unit], read: Callable[[Unit], T]) -> list[T]:
        """Apply `read`, which fetches a unit, to every unit; concurrently from an object store."""
        return at_once(read, units, self.path, nbytes=self.block_rows * self.form.width * 2)

    def _read(self, unit: Unit, out: Rows | None = None) -> Rows:
        """Fill `out`, or a new array, with a finished unit's rows, checked. If they are not what the entry
        says, the unit may have been removed, or repaired, since that was read: both are read once more.
        """
        out = self._buffer(unit) if out is None else out
        is_old = unit in self._entries
        while True:
            entry = self._entry(unit)
            if entry is None:
                raise StoreIncomplete(f"{self.path}: {unit} is not finished; run the same precompute again")
            try:
                self._files.read_payload(unit, entry, out)
            except UnitFault as fault:
                if not is_old:
                    raise StoreDamaged(self._files.damage(unit, fault)) from None
                is_old, _ = False, self._entries.pop(unit, None)
            else:
                return out

    def _entry(self, unit: Unit) -> int | None:
        """The CRC32C that a unit's entry states, None without an entry; StoreDamaged if that is damaged."""
        if unit not in self._entries:
            try:
                entry = self._files.read_entry(unit)
            except UnitFault as fault:
                raise StoreDamaged(self._files.damage(unit, fault)) from None
            if entry is None:
                return None
            self._entries[unit] = entry
        return self._entries[unit]

    def _table(self, name: str) -> NDArray[Any]:
        return layouts.read_table(self.path, name, self._tables_sha256.get(name))

    @cached_property
    def _sorted_ids(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order = np.argsort(self.ids).astype(np.int64)
        return order, self.ids[order]
