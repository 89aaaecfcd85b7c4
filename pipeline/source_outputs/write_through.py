"""Train with the live sources and fill their stores on the way; a view that is already stored is read.

A unit is written at the end of the epoch if all its rows have been computed. A killed run loses the rows of
its current epoch; that view is computed live again when its turn comes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from cache import Store, Unit
from pipeline.data import Dataset, Mask, Positions
from pipeline.source_outputs.cached import CachedOutputs, all_classes
from pipeline.source_outputs.networks import LiveNetworks
from pipeline.source_outputs.placement import Placement, Table
from pipeline.stores import SourceStore
from sskt.sources import Contract
from sskt.topk import decode, encode

_MOST_PENDING = 64 << 20  # bytes of rows that wait on a CUDA device for their copy to the host


@dataclass(slots=True)
class _ViewInProgress:
    """The view that is being computed: store rows by source, and which of them are filled."""

    view: int
    rows: dict[str, torch.Tensor]  # float16 or uint16 (N, width) on the host
    filled: Mask  # (N,)
    # rows that are not in `rows` yet, with their source and positions: a copy of them waits for the device
    pending: list[tuple[str, Positions, torch.Tensor]] = field(default_factory=list)

    def fill(self) -> None:
        """Copy the pending rows to the host."""
        pending, self.pending = self.pending, []
        for name in dict.fromkeys(name for name, *_ in pending):
            own = [(positions, rows) for each, positions, rows in pending if each == name]
            at = torch.from_numpy(np.concatenate([positions for positions, _ in own]))
            rows = torch.cat([rows.view(torch.int16) for _, rows in own]).cpu()  # torch copies no uint16 rows
            self.rows[name].view(torch.int16)[at] = rows


class WriteThroughOutputs:
    """See `pipeline.source_outputs.SourceOutputs`. The sources see the views as planned; for mixtures, logits
    are mixed.
    """

    kind = "write-through"
    sees_mixtures = False

    def __init__(
        self,
        source_stores: Mapping[str, SourceStore],
        dataset: Dataset,
        *,
        views: int,
        open_cached: Callable[[], CachedOutputs],
        placement: Placement,
        temperature: float,
        contracts: Mapping[str, Contract] | None = None,
    ) -> None:
        """`open_cached` opens the finished stores, to read from once all views are stored."""
        self._source_stores, self._dataset, self.views = source_stores, dataset, views
        self._open_cached, self._placement, self._temperature = open_cached, placement, temperature
        self._cached: CachedOutputs | None = None
        self._in_progress: _ViewInProgress | None = None
        self._networks = LiveNetworks()
        self._most_pending = _MOST_PENDING if placement.device.type == "cuda" else 0
        self._stored: dict[str, Table] = {}  # by source, where the current view is already stored
        self.contracts = contracts or {}
        self.n_classes = {name: each.store.n_classes for name, each in source_stores.items()}
        self.weights_sha256 = {name: each.source.weights_sha256 for name, each in source_stores.items()}

    def load(self, view: int, positions: Positions) -> None:
        """See `SourceOutputs.load`."""
        if self._cached is None and self._all_stored():
            self._cached = self._open_cached()
        if self._cached is not None:
            self._cached.load(view, positions)
            return
        n = len(self._dataset)
        rows: dict[str, torch.Tensor] = {}
        self._stored = {}
        for name, source_store in self._source_stores.items():
            store = source_store.store
            if _lacks(source_store, view):
                dtype = torch.float16 if store.top_k is None else torch.uint16
                rows[name] = torch.empty((n, store.form.width), dtype=dtype)
            else:
                self._stored[name] = self._placement.place(store, view, np.arange(n))
        self._in_progress = _ViewInProgress(view, rows, np.zeros(n, dtype=np.bool_))

    def prepare(self, view: int, positions: Positions) -> None:
        """See `SourceOutputs.prepare`."""
        if self._cached is not None:
            self._cached.prepare(view, positions)

    def logits(self, positions: Positions, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `SourceOutputs.logits`."""
        if self._cached is not None:
            return self._cached.logits(positions, pixels)
        view = self._in_progress
        if view is None:
            raise RuntimeError("no view is loaded")
        logits = {}
        asked = {name: each for name, each in self._source_stores.items() if name not in self._stored}
        live = self._networks.rows([each.frozen for each in asked.values() if each.frozen], pixels)
        there = self._placement.indices(positions) if self._stored else None
        for name, source_store in self._source_stores.items():
            store, frozen = source_store.store, source_store.frozen
            if name in self._stored:
                rows = self._stored[name].rows(positions, there)
                logits[name] = all_classes(store, rows, self._temperature)
            elif frozen is not None:
                rows, logits[name] = self._as_stored(store, live[frozen][:, source_store.columns])
                view.pending.append((name, positions, rows))
        if sum(rows.nbytes for *_, rows in view.pending) >= self._most_pending:
            view.fill()
        view.filled[positions] = True
        return logits

    def check(self) -> None:
        """See `SourceOutputs.check`."""
        self._networks.check()

    def finish(self) -> None:
        """See `SourceOutputs.finish`. Writes every unit of the view whose rows have all been computed."""
        view, self._in_progress = self._in_progress, None
        if view is None:
            return
        self.check()
        view.fill()
        for name, rows in view.rows.items():
            source_store = self._source_stores[name]
            store = source_store.store
            pending = set(store.pending(self.views))
            for block in range(store.n_blocks):
                unit, at = Unit(view.view, block), store.rows_of(block)
                complete = unit in pending and view.filled[at].all()
                if complete and not store.write_unit(unit, rows[at].numpy()):
                    source_store.rows_twice += at.stop - at.start

    def _all_stored(self) -> bool:
        return not any(each.store.pending(self.views) for each in self._source_stores.values())

    def _as_stored(self, store: Store, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch's rows as units hold them, and the logits that a reader of the store will get."""
        if store.top_k is None:
            return logits, all_classes(store, logits, self._temperature)
        rows = encode(logits, store.top_k)
        return rows, decode(rows, store.n_classes, self._temperature)


def _lacks(source_store: SourceStore, view: int) -> bool:
    """Whether any unit of a view is unfinished; if so, the source is loaded."""
    return any(unit.view == view for unit in source_store.store.pending(view + 1))
