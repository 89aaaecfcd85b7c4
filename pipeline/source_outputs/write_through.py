"""Train with the live sources and fill their stores on the way; what is stored of a view is read.

A unit is written when its rows have all been asked for, at the end of the epoch; rows that a killed run asked
for are lost with it, and its view is live once more when its turn comes again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cache.store import Unit
from pipeline.data.datasets.dataset import Dataset
from pipeline.source_outputs.cached import CachedOutputs, all_classes
from pipeline.source_outputs.placement import Placement, Table
from pipeline.stores import SourceStore
from sskt.sources import Contract
from sskt.topk import decode, encode


@dataclass(slots=True)
class _UnitInProgress:
    """The rows of one view that have been asked for: whole store rows, and which of them are there."""

    view: int
    rows: dict[str, torch.Tensor]  # float16 or uint16 (N, width) on the host
    there: NDArray[np.bool_]  # (N,)


class WriteThroughOutputs:
    """See `pipeline.source_outputs.SourceOutputs`. The sources see the views as planned; of mixtures, logits
    are mixed.
    """

    kind = "write-through"
    sees_mixtures = False

    def __init__(
        self,
        works: Mapping[str, SourceStore],
        dataset: Dataset,
        *,
        views: int,
        cached: Callable[[], CachedOutputs],
        residence: Placement,
        temperature: float,
        contracts: Mapping[str, Contract] | None = None,
    ) -> None:
        """`cached` opens the labels of the finished stores, to read from once all views are there."""
        self._works, self._dataset, self.views = works, dataset, views
        self._open_cached, self._residence, self._temperature = cached, residence, temperature
        self._cached: CachedOutputs | None = None
        self._filling: _UnitInProgress | None = None
        self._stored: dict[str, Table] = {}  # of sources that have this view already
        self.contracts = contracts or {}
        self.n_classes = {name: work.store.n_classes for name, work in works.items()}
        self.weights_sha256 = {name: work.source.weights_sha256 for name, work in works.items()}

    def load(self, view: int, positions: NDArray[np.int64]) -> None:
        """See `SourceOutputs.load`."""
        if self._cached is None and not any(work.store.pending(self.views) for work in self._works.values()):
            self._cached = self._open_cached()
        if self._cached is not None:
            self._cached.load(view, positions)
            return
        n = len(self._dataset)
        lacking = {name: work for name, work in self._works.items() if _lacks(work, view)}
        self._stored = {
            name: self._residence.of(work.store, view, np.arange(n))
            for name, work in self._works.items()
            if name not in lacking
        }
        rows = {
            name: torch.empty((n, work.store.form.width), dtype=_DTYPES[work.store.top_k is None])
            for name, work in lacking.items()
        }
        self._filling = _UnitInProgress(view, rows, np.zeros(n, dtype=np.bool_))

    def prepare(self, view: int, positions: NDArray[np.int64]) -> None:
        """See `SourceOutputs.prepare`."""
        if self._cached is not None:
            self._cached.prepare(view, positions)

    def logits(self, positions: NDArray[np.int64], pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `SourceOutputs.logits`."""
        if self._cached is not None:
            return self._cached.logits(positions, pixels)
        filling = self._filling
        if filling is None:
            raise RuntimeError("no view is loaded")
        answers = {}
        for name, work in self._works.items():
            if name in self._stored:
                answers[name] = all_classes(work.store, self._stored[name].rows(positions), self._temperature)
            elif work.frozen is not None:
                answers[name] = self._kept(
                    filling.rows[name],
                    work,
                    positions,
                    work.frozen.logits(work.frozen.input_map.picked(pixels)),
                )
        filling.there[positions] = True
        return answers

    def finish(self) -> None:
        """See `SourceOutputs.finish`. Writes every unit of the view whose rows have all been asked for."""
        filling, self._filling = self._filling, None
        if filling is None:
            return
        for name, rows in filling.rows.items():
            work = self._works[name]
            pending = set(work.store.pending(self.views))
            for block in range(work.store.n_blocks):
                unit, at = Unit(filling.view, block), work.store.rows_of(block)
                whole = unit in pending and filling.there[at].all()
                if whole and not work.store.write_unit(unit, rows[at].numpy()):
                    work.rows_twice += at.stop - at.start

    def _kept(
        self, table: torch.Tensor, work: SourceStore, positions: NDArray[np.int64], logits: torch.Tensor
    ) -> torch.Tensor:
        """Put rows where their unit will be written from; returns the logits that a reader will get."""
        top_k, at = work.store.top_k, torch.from_numpy(positions)
        if top_k is None:
            table[at] = logits.cpu()
            return logits
        rows = encode(logits, top_k)
        table.view(torch.int16)[at] = rows.view(torch.int16).cpu()
        return decode(rows, work.store.n_classes, self._temperature)


def _lacks(work: SourceStore, view: int) -> bool:
    """Whether a unit of a view is unfinished; then the source is awake."""
    return any(unit.view == view for unit in work.store.pending(view + 1))


_DTYPES = {True: torch.float16, False: torch.uint16}  # by whether a row holds all logits
