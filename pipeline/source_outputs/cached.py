"""Logits read from stores: a view at a time, loaded while the one before is in use, one gather per batch."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cache import Store, StoreIncomplete
from pipeline.data.datasets.dataset import Dataset
from pipeline.source_outputs.placement import Placement, Table
from sskt.sources import Contract
from sskt.topk import decode


@dataclass(frozen=True, slots=True, eq=False)
class _View:
    """The rows of one view that an epoch needs."""

    view: int
    positions: NDArray[np.int64]  # (n,) sorted rows of the index
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
        residence: Placement,
        temperature: float,
        contracts: Mapping[str, Contract] | None = None,
    ) -> None:
        """`temperature` is the one that the labels are for: it decides what classes beyond the top k get.

        Raises StoreIncomplete if any of the views 0..views-1 is not finished in any store.
        """
        self._stores, self.views = stores, views
        self._residence, self._temperature = residence, temperature
        self.n_classes = {name: store.n_classes for name, store in stores.items()}
        self.contracts = contracts or {}
        self.weights_sha256 = {
            name: str(store.manifest.identity["source"]["weights_sha256"]) for name, store in stores.items()
        }
        self._rows = {name: store.positions_of(dataset.ids) for name, store in stores.items()}
        self._now: _View | None = None
        self._next: Future[_View] | None = None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="labels")
        for name, store in stores.items():
            require_views(store, name, views)

    def load(self, view: int, positions: NDArray[np.int64]) -> None:
        """See `SourceOutputs.load`. Reads and verifies every unit that holds one of the rows."""
        if self._next is not None:
            self._now, self._next = self._next.result(), None
        if not self._is_loaded(view, positions):
            self._now = None  # make room first
            self._now = self._read(view, positions)

    def prepare(self, view: int, positions: NDArray[np.int64]) -> None:
        """See `SourceOutputs.prepare`. A thread of its own reads; what it finds damaged, `load` raises."""
        if not self._is_loaded(view, positions):
            self._next = self._reader.submit(self._read, view, positions)

    def logits(self, positions: NDArray[np.int64], pixels: torch.Tensor) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """See `SourceOutputs.logits`."""
        if self._now is None:
            raise RuntimeError("no view is loaded")
        at = np.searchsorted(self._now.positions, positions)
        return {
            name: all_classes(self._stores[name], table.rows(at), self._temperature)
            for name, table in self._now.tables.items()
        }

    def finish(self) -> None:
        """See `SourceOutputs.finish`. Nothing to do."""

    def _is_loaded(self, view: int, wanted: NDArray[np.int64]) -> bool:
        now = self._now
        return now is not None and now.view == view and np.array_equal(now.positions, wanted)

    def _read(self, view: int, wanted: NDArray[np.int64]) -> _View:
        tables = {
            name: self._residence.of(store, view, self._rows[name][wanted])
            for name, store in self._stores.items()
        }
        return _View(view, wanted, tables)


def all_classes(store: Store, rows: torch.Tensor, temperature: float) -> torch.Tensor:
    """Stored rows, float16 (n, width), as logits of every class (n, K)."""
    if store.top_k is None:
        return rows
    return decode(rows.view(torch.uint16), store.n_classes, temperature)


def require_views(store: Store, name: str, views: int) -> None:
    """Raise StoreIncomplete unless the first `views` views of a source's store are finished."""
    missing = store.pending(views) if views <= store.n_views else None
    if missing is None or missing:
        left = "only" if missing is None else f"{len(missing)} unfinished units in"
        raise StoreIncomplete(
            f"{store.path}: {left} {store.n_views} views, this run needs {views} whole ones from "
            f"{name}; run sskt precompute with --views {views} again, ask for fewer --views, or "
            f"train with --labels live"
        )
