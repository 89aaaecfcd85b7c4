"""Stage one's loop: draw a unit, run every network on it, commit.

These steps overlap: one thread draws ahead, the calling thread starts and collects forwards, one thread
writes. No forward of the next unit starts before a unit is written, so a process that dies loses at most one
unit. On object stores, where writing a unit takes as long as many forwards, and on CUDA, where a unit takes a
fraction of a second, up to half of the next unit may be started.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import torch

from cache import CacheError, Store, Unit, local_path
from pipeline.data import Dataset, Plan, Positions, Renderer, in_batches, open_renderer
from pipeline.precompute.sharding import Task
from pipeline.runtime import (
    Execution,
    Progress,
    memory_for_images,
    prefetch,
    render_batch_size,
    to_device,
)
from pipeline.stores import SourceStore
from sskt.errors import SourceError
from sskt.sources import FrozenSource, NonFiniteLogitsError
from sskt.topk import encode

_PREFETCH = 2  # batches
_MAX_IN_FLIGHT = 2  # batches whose forwards have been started


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
    """Computes missing units of one target's stores, which all have the same blocks."""

    def __init__(
        self,
        dataset: Dataset,
        source_stores: list[SourceStore],
        renderer: Renderer,
        *,
        batch_size: int,
        progress: Progress,
    ) -> None:
        self._dataset, self._source_stores, self._renderer = dataset, source_stores, renderer
        self._batch_size, self._progress = batch_size, progress
        on_cuda = any(each.frozen and each.frozen.device.type == "cuda" for each in source_stores)
        self._starts_ahead = on_cuda or local_path(source_stores[0].store.path) is None
        self._writing: Future[None] | None = None

    def show(self, tasks: Iterable[Task]) -> None:
        """Show a bar for each store over the rows of some tasks, finished or not."""
        units = {unit for task in tasks for unit in task}
        for each in self._source_stores:
            total, left = n_rows(each.store, units), n_rows(each.store, units & each.pending)
            each.bar = self._progress.add(each.source.spec.name, total=total, done=total - left)

    def do(self, tasks: Iterable[Task]) -> None:
        """Compute every unit of `tasks` that a store lacks."""
        with (
            ThreadPoolExecutor(1, thread_name_prefix="writer") as writer,
            closing(prefetch(self._draw(tasks), _PREFETCH)) as drawn,
        ):
            self._run_sources(drawn, writer)

    def _run_sources(
        self, drawn: Iterable[tuple[_PartialUnit, torch.Tensor]], writer: ThreadPoolExecutor
    ) -> None:
        """Run the sources on every batch and have complete units written."""
        in_flight: deque[_InFlight] = deque()
        for partial, pixels in drawn:
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

    def _start(self, partial: _PartialUnit, pixels: torch.Tensor) -> _InFlight:
        """Start a batch's forwards: one for all outputs of a network."""
        at = partial.n_started
        partial.n_started += len(pixels)
        sources = dict.fromkeys(each.frozen for each in partial.source_stores if each.frozen)
        pixels = to_device(pixels, next(iter(sources)).device)
        return partial, at, {frozen: frozen.submit(pixels) for frozen in sources}

    def _draw(self, tasks: Iterable[Task]) -> Generator[tuple[_PartialUnit, torch.Tensor]]:
        """Draw every unit that a store lacks, batch by batch."""
        for units in tasks:
            task = [unit for unit in units if any(unit in each.pending for each in self._source_stores)]
            with self._renderer.cache_decoded() if self._fit_in_memory(task) else nullcontext():
                for unit in task:
                    source_stores = [each for each in self._source_stores if self._lacks(each, unit)]
                    if source_stores:
                        partial = _PartialUnit(unit, source_stores, self._positions(unit))
                        batches = in_batches(partial.positions, self._batch_size)
                        with closing(self._renderer.render(unit.view, batches)) as drawn:
                            for pixels in drawn:
                                yield partial, pixels

    def _lacks(self, source_store: SourceStore, unit: Unit) -> bool:
        """Whether a unit is unfinished still: another process may have written it since the store was
        opened.
        """
        if unit in source_store.pending and source_store.store.finished(unit):
            source_store.pending.discard(unit)
            if source_store.bar is not None:
                self._progress.advance(n_rows(source_store.store, [unit]), bar=source_store.bar)
        return unit in source_store.pending

    def _fit_in_memory(self, task: list[Unit]) -> bool:
        """Whether a task's images are worth keeping decoded, and few enough."""
        if len(task) < 2 or self._dataset.kind != "files":
            return False
        sizes = self._dataset.sizes[self._positions(task[0])]
        return 3 * int(sizes.prod(axis=1, dtype=np.int64).sum()) <= memory_for_images()

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
            if source_store.bar is not None:
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
            source_store.rows_done += len(logits)
            source_store.write_s += perf_counter() - started
        if first_error is not None:
            raise first_error

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

    def _positions(self, unit: Unit) -> Positions:
        """The dataset positions of a unit's rows."""
        rows = self._source_stores[0].store.rows_of(unit.block)
        return np.arange(rows.start, rows.stop)


def n_rows(store: Store, units: Iterable[Unit]) -> int:
    """The number of rows that units of a store hold."""
    return sum(len(range(store.n_samples)[store.rows_of(unit.block)]) for unit in units)


@contextmanager
def open_worker(
    dataset: Dataset, plan: Plan, source_stores: list[SourceStore], execution: Execution, progress: Progress
) -> Iterator[Worker]:
    """A worker, with a renderer of its own, for stores of which some lack units. plan: as sources see it."""
    sources = [each.frozen for each in source_stores if each.frozen]
    batch_size = render_batch_size(max(frozen.forward.batch_size for frozen in sources))
    with closing(open_renderer(dataset, plan, execution, batch_size=batch_size)) as renderer:
        yield Worker(dataset, source_stores, renderer, batch_size=batch_size, progress=progress)
