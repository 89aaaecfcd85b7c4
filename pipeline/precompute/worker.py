"""Stage one's loop: claim a unit, draw it, run every network on it, commit.

These steps overlap: one thread draws ahead, the calling thread starts and collects forwards, one thread
writes. No forward of the next unit starts before a unit is written, so a process that dies loses at most one
unit. On object stores, where writing a unit takes as long as many forwards, and on CUDA, where a unit takes a
fraction of a second, up to half of the next unit may be started.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from time import perf_counter, sleep

import numpy as np
import torch

from cache import CacheError, Unit
from pipeline.data import Dataset, Positions, Renderer, in_batches
from pipeline.precompute.sharding import split_tasks, task_order
from pipeline.runtime import Progress, World, memory_for_images, prefetch, to_device
from pipeline.stores import SourceStore
from sskt.errors import SourceError
from sskt.sources import FrozenSource, NonFiniteLogitsError
from sskt.topk import encode

_PREFETCH = 2  # batches
_MAX_IN_FLIGHT = 2  # batches whose forwards have been started
_WAIT_S, _MAX_WAIT_S = 1.0, 30.0  # between two looks at units that other processes have claimed


@dataclass(slots=True, eq=False)
class _PartialUnit:
    """A unit that is being computed, for the sources that lack it."""

    unit: Unit
    source_stores: list[SourceStore]
    positions: Positions  # in the dataset
    logits: list[torch.Tensor] = field(default_factory=list)  # (n, K) float16, one per source
    n_started: int = 0  # rows whose forwards have been started


# a batch's unit, its first row within the unit, and for each network the function that waits for its rows
_InFlight = tuple[_PartialUnit, int, dict[FrozenSource, Callable[[], torch.Tensor]]]


class Worker:
    """Computes the missing units of one target's stores, which all have the same blocks."""

    def __init__(
        self,
        dataset: Dataset,
        source_stores: list[SourceStore],
        renderer: Renderer,
        world: World,
        *,
        batch_size: int,
        progress: Progress,
    ) -> None:
        self._dataset, self._source_stores = dataset, source_stores
        self._renderer, self._world = renderer, world
        self._batch_size, self._progress = batch_size, progress
        self._claims = all(each.store.has_claims for each in source_stores)
        on_cuda = any(each.frozen and each.frozen.device.type == "cuda" for each in source_stores)
        self._starts_ahead = on_cuda or not self._claims
        self._open: list[_PartialUnit] = []  # claimed and not committed
        self._writing: Future[None] | None = None

    def work(self, views: int) -> None:
        """Compute the unfinished units of the first `views` views, and wait for those that other processes
        have claimed.

        If the stores have no claims (on object stores), each rank does its own share and does not wait.
        """
        for source_store in self._source_stores:
            total, left = views * len(self._dataset), sum(map(self._n_rows, source_store.pending))
            source_store.bar = self._progress.add(
                source_store.source.spec.name, total=total, done=total - left
            )
        # all units are shared out, not just those left now: other ranks look at other moments
        n_blocks = self._source_stores[0].store.n_blocks
        all_tasks = split_tasks(views, n_blocks, decodes=self._dataset.kind == "files")
        tasks = task_order(all_tasks, self._world, steal=self._claims)
        wait_s, is_announced = _WAIT_S, False
        while True:
            n_done = self._run_available(tasks)
            if not self._claims:
                return
            before = self._n_pending
            for source_store in self._source_stores:
                self._refresh_pending(source_store, views)
            if not self._n_pending:
                return
            if n_done or self._n_pending < before:
                wait_s = _WAIT_S
            if not n_done:
                if not is_announced:
                    self._progress.say(self._waiting_message())
                    is_announced = True
                sleep(wait_s)
                wait_s = min(2 * wait_s, _MAX_WAIT_S)

    def _run_available(self, tasks: list[tuple[Unit, ...]]) -> int:
        """Compute every unit that can be claimed; returns how many."""
        try:
            with (
                ThreadPoolExecutor(1, thread_name_prefix="writer") as writer,
                closing(prefetch(self._draw(tasks), _PREFETCH)) as drawn,
            ):
                return self._run_sources(drawn, writer)
        finally:  # after the writer has ended, so that no other process starts a unit that is being written
            for partial in self._open:
                for source_store in partial.source_stores:
                    source_store.store.release(partial.unit)
            self._open = []

    def _run_sources(
        self, drawn: Iterable[tuple[_PartialUnit, torch.Tensor]], writer: ThreadPoolExecutor
    ) -> int:
        """Run the sources on every batch and have complete units written; returns the number of units."""
        in_flight: deque[_InFlight] = deque()
        n_units = 0
        for partial, pixels in drawn:
            n_units += partial.n_started == 0
            past_half = 2 * (partial.n_started + len(pixels)) > len(partial.positions) + 1
            if not self._starts_ahead or past_half:  # write the previous unit first
                while in_flight and in_flight[0][0] is not partial:
                    self._collect(in_flight.popleft(), writer)
                self._finish_writing()
            in_flight.append(self._start(partial, pixels))
            if len(in_flight) > _MAX_IN_FLIGHT:
                self._collect(in_flight.popleft(), writer)
        while in_flight:
            self._collect(in_flight.popleft(), writer)
        self._finish_writing()
        return n_units

    def _start(self, partial: _PartialUnit, pixels: torch.Tensor) -> _InFlight:
        """Start a batch's forwards: one for all outputs of a network."""
        at = partial.n_started
        partial.n_started += len(pixels)
        sources = dict.fromkeys(each.frozen for each in partial.source_stores if each.frozen)
        pixels = to_device(pixels, next(iter(sources)).device)
        return partial, at, {frozen: frozen.submit(pixels) for frozen in sources}

    def _draw(self, tasks: list[tuple[Unit, ...]]) -> Generator[tuple[_PartialUnit, torch.Tensor]]:
        """Draw every unit that this process can claim, batch by batch."""
        for units in tasks:
            task = [unit for unit in units if any(unit in each.pending for each in self._source_stores)]
            with self._renderer.cache_decoded() if self._fit_in_memory(task) else nullcontext():
                for unit in task:
                    source_stores = self._claim(unit)
                    if source_stores:
                        partial = _PartialUnit(unit, source_stores, self._positions(unit))
                        self._open.append(partial)
                        batches = in_batches(partial.positions, self._batch_size)
                        with closing(self._renderer.render(unit.view, batches)) as drawn:
                            for pixels in drawn:
                                yield partial, pixels

    def _fit_in_memory(self, task: list[Unit]) -> bool:
        """Whether a task's images are worth keeping decoded, and few enough."""
        if len(task) < 2 or self._dataset.kind != "files":
            return False
        sizes = self._dataset.sizes[self._positions(task[0])]
        return 3 * int(sizes.prod(axis=1, dtype=np.int64).sum()) <= memory_for_images()

    def _claim(self, unit: Unit) -> list[SourceStore]:
        """Claim a unit in every store that lacks it; returns the stores that this process may write it to."""
        claimed = [each for each in self._source_stores if unit in each.pending and each.store.claim(unit)]
        # another process may have finished it since we looked
        finished = [each for each in claimed if each.store.finished(unit)]
        for source_store in finished:
            source_store.store.release(unit)
        return [each for each in claimed if each not in finished]

    def _collect(self, batch: _InFlight, writer: ThreadPoolExecutor) -> None:
        """Wait for a batch's logits; if it completes its unit, send that to the writer."""
        partial, at, waits = batch
        rows = {frozen: wait() for frozen, wait in waits.items()}
        n = 0
        for source_store, out in zip(partial.source_stores, self._buffers(partial), strict=True):
            assert source_store.frozen is not None  # noqa: S101 - it lacks this unit
            logits = rows[source_store.frozen][:, source_store.columns]
            n = len(logits)
            out[at : at + n] = logits
            self._progress.advance(n, bar=source_store.bar)
        if at + n == len(partial.positions):
            self._writing = writer.submit(self._commit, partial)

    def _buffers(self, partial: _PartialUnit) -> list[torch.Tensor]:
        if not partial.logits:
            n = len(partial.positions)
            partial.logits = [
                torch.empty((n, each.store.n_classes), dtype=torch.float16, device=each.frozen.device)
                for each in partial.source_stores
                if each.frozen
            ]
        return partial.logits

    def _finish_writing(self) -> None:
        """Wait for the unit that is being written, and raise its error, if any."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _commit(self, partial: _PartialUnit) -> None:
        """Write a unit to every store that lacks it; if one source fails, the others are still written."""
        first_error: Exception | None = None
        for source_store, logits in zip(partial.source_stores, partial.logits, strict=True):
            started = perf_counter()
            try:
                self._require_finite(source_store, partial, logits)
                top_k = source_store.store.top_k
                rows = logits if top_k is None else encode(logits, top_k)
                if not source_store.store.write_unit(partial.unit, rows.cpu().numpy()):
                    source_store.rows_twice += len(logits)
            except (SourceError, CacheError) as error:
                first_error = first_error or error
                continue
            source_store.pending.discard(partial.unit)
            source_store.store.release(partial.unit)
            source_store.rows_done += len(logits)
            source_store.write_s += perf_counter() - started
        if first_error is not None:
            raise first_error
        self._open.remove(partial)

    def _require_finite(self, source_store: SourceStore, partial: _PartialUnit, logits: torch.Tensor) -> None:
        """Raise SourceError, naming the samples, if any row is not finite."""
        try:
            if source_store.frozen is not None:
                source_store.frozen.require_finite_output(logits, source_store.source)
        except NonFiniteLogitsError as error:
            bad = [int(partial.positions[row]) for row in error.rows[:3]]
            names = ", ".join(f"{self._dataset.ids[p]} ({self._dataset.name_of(p)})" for p in bad)
            raise SourceError(
                f"{error}; view {partial.unit.view}, samples {names}; nothing of this unit was kept"
            ) from error

    @property
    def _n_pending(self) -> int:
        return sum(len(each.pending) for each in self._source_stores)

    def _waiting_message(self) -> str:
        """Say which units this process waits for."""
        source_store = next(each for each in self._source_stores if each.pending)
        return (
            f"{self._dataset.target}: waiting for {self._n_pending} unit(s) that other processes have "
            f"claimed, {min(source_store.pending)} of {source_store.source.spec.name} first; a process that "
            f"is stopped keeps its claims: let it go on, or end it"
        )

    def _refresh_pending(self, source_store: SourceStore, views: int) -> None:
        """Drop the units from `pending` that other processes have finished meanwhile."""
        if source_store.pending:
            left = set(source_store.store.pending(views)) & source_store.pending
            self._progress.advance(sum(map(self._n_rows, source_store.pending - left)), bar=source_store.bar)
            source_store.pending = left

    def _positions(self, unit: Unit) -> Positions:
        """The dataset positions of a unit's rows."""
        rows = self._source_stores[0].store.rows_of(unit.block)
        return np.arange(rows.start, rows.stop)

    def _n_rows(self, unit: Unit) -> int:
        return len(self._positions(unit))
