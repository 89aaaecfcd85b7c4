"""Outputs read from stores: one view at a time, loaded while the previous one is in use, one gather per
batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from cache import Store, StoreIncomplete
from pipeline.data import Dataset, Positions
from pipeline.source_outputs.placement import Placement, ReadRows, Table
from pipeline.stores import stored_output
from sskt.sources import Contract, row_shape
from sskt.topk import decode


@dataclass(frozen=True, slots=True, eq=False)
class _View:
    """The rows of one view that an epoch needs."""

    view: int
    positions: Positions  # (n,) sorted positions in the dataset
    tables: dict[str, Table]


class CachedOutputs:
    """See `pipeline.source_outputs.SourceOutputs`."""

    kind = "cached"
    sees_mixtures = False

    def __init__(
        self,
        stores: Mapping[str, Store],
        dataset: Dataset,
        *,
        views: int,
        placement: Placement,
        temperature: float,
        contracts: Mapping[str, Contract] | None = None,
        read: ReadRows = Store.rows,
    ) -> None:
        """`temperature` is the student's: it decides the logits of the classes beyond a store's top k.
        `read` reads rows of a store.

        Raises StoreIncomplete if any store lacks part of the views 0..views-1.
        """
        self.stores, self.views = stores, views
        self._placement, self._temperature, self._read_rows = placement, temperature, read
        self.n_classes = {name: store.n_classes for name, store in stores.items()}
        self.contracts = contracts or {}
        self.weights_sha256 = {
            name: str(store.manifest.identity["source"]["weights_sha256"]) for name, store in stores.items()
        }
        self._rows = {name: store.positions_of(dataset.ids) for name, store in stores.items()}
        self._current: _View | None = None
        self._next: Future[_View] | None = None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="source-outputs")
        for name, store in stores.items():
            require_views(store, name, views)

    def load(self, view: int, positions: Positions) -> None:
        """See `SourceOutputs.load`. Reads and verifies every unit that holds one of the rows."""
        if self._next is not None:
            self._current, self._next = self._next.result(), None
        if not self._is_loaded(view, positions):
            self._current = None  # free its memory first
            self._current = self._read(view, positions)

    def prepare(self, view: int, positions: Positions) -> None:
        """See `SourceOutputs.prepare`. Reads in a separate thread; `load` raises if it found damage."""
        if not self._is_loaded(view, positions):
            self._next = self._reader.submit(self._read, view, positions)

    def logits(self, positions: Positions, pixels: torch.Tensor) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """See `SourceOutputs.logits`."""
        if self._current is None:
            raise RuntimeError("no view is loaded")
        at = np.searchsorted(self._current.positions, positions)
        there = self._placement.indices(at)  # one copy for all tables
        return {
            name: all_classes(self.stores[name], table.rows(at, there), self._temperature)
            for name, table in self._current.tables.items()
        }

    def check(self) -> None:
        """See `SourceOutputs.check`. Nothing to do: stored rows were checked when they were written."""

    def finish(self) -> None:
        """See `SourceOutputs.finish`. Nothing to do."""

    def _is_loaded(self, view: int, positions: Positions) -> bool:
        current = self._current
        return current is not None and current.view == view and np.array_equal(current.positions, positions)

    def _read(self, view: int, positions: Positions) -> _View:
        tables = {
            name: self._placement.place(store, view, self._rows[name][positions], self._read_rows)
            for name, store in self.stores.items()
        }
        return _View(view, positions, tables)


def all_classes(store: Store, rows: torch.Tensor, temperature: float) -> torch.Tensor:
    """Expand stored rows, float16 (n, width), to the logits of every class (n, K); maps, (n, C, g, g)."""
    if store.top_k is None:
        return shaped(rows, stored_output(store))
    return decode(rows.view(torch.uint16), store.n_classes, temperature)


def shaped(rows: torch.Tensor, output: str) -> torch.Tensor:
    """Rows (n, K) of an output as `SourceOutputs.logits` gives them: of maps (n, C, g, g)."""
    return rows.reshape(len(rows), *row_shape(output, rows.shape[1])).contiguous()


def require_views(store: Store, name: str, views: int) -> None:
    """Raise StoreIncomplete unless the first `views` views of the store of source `name` are finished."""
    missing = store.pending(views) if views <= store.n_views else None
    if missing is None or missing:
        left = "only" if missing is None else f"{len(missing)} unfinished units in"
        raise StoreIncomplete(
            f"{store.path}: {left} {store.n_views} views, this run needs {views} whole ones from "
            f"{name}; run sskt precompute with --views {views} again, ask for fewer --views, or "
            f"train with --labels live"
        )
