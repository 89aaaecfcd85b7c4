"""The loop of stage one: claim a unit, draw it, ask every source, commit.

All of it overlaps: one thread draws ahead, the caller's starts forwards and collects them, one thread
writes. No forward of the next unit begins before a unit is written, so a process that dies loses at most one
unit. On object stores, where writing one takes as long as many forwards, half of the next may be begun.
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
from numpy.typing import NDArray

from cache import CacheError
from cache.unit import Unit
from pipeline.data.datasets.dataset import Dataset
from pipeline.data.render import Renderer, in_batches
from pipeline.precompute.sharding import in_turn, tasks_of
from pipeline.runtime import Progress, World, memory_for_images, prefetch, to_device
from pipeline.stores import SourceStore
from sskt.errors import SourceError
from sskt.sources import NonFiniteLogitsError
from sskt.topk import encode

_DRAWN_AHEAD = 2  # batches
_IN_FLIGHT = 2  # batches whose forwards have begun
_WAIT_S, _LONGEST_WAIT_S = 1.0, 30.0  # between two looks at units that other processes have claimed


@dataclass(slots=True, eq=False)
class _UnitInProgress:
    """A unit that is being computed, for the sources that lack it: one (n, K) float16 tensor each."""

    unit: Unit
    works: list[SourceStore]
    positions: NDArray[np.int64]  # index rows
    logits: list[torch.Tensor] = field(default_factory=list)
    begun: int = 0  # rows whose forwards have begun


_Begun = tuple[_UnitInProgress, int, list[Callable[[], torch.Tensor]]]


class Worker:
    """What does the units of one target's stores, which all have the same blocks."""

    def __init__(
        self,
        dataset: Dataset,
        works: list[SourceStore],
        renderer: Renderer,
        world: World,
        *,
        batch_size: int,
        progress: Progress,
    ) -> None:
        self._dataset, self._works, self._renderer, self._world = dataset, works, renderer, world
        self._batch_size, self._progress = batch_size, progress
        self._claims = all(work.store.has_claims for work in works)
        self._open: list[_UnitInProgress] = []  # claimed and not committed
        self._writing: Future[None] | None = None

    def work(self, views: int) -> None:
        """Do what is unfinished of the first `views` views, and wait for what other processes have claimed.

        Where stores have no claims (on object stores) each rank does its own share and waits for nobody.
        """
        for work in self._works:
            total, left = views * len(self._dataset), sum(map(self._n_rows, work.pending))
            work.bar = self._progress.add(work.source.spec.name, total=total, done=total - left)
        # shares are cut from all units, not from what is left now: another rank may look at another moment
        every = tasks_of(views, self._works[0].store.n_blocks, decodes=self._dataset.kind == "files")
        tasks = in_turn(every, self._world, steal=self._claims)
        wait_s, told = _WAIT_S, False
        while True:
            n_done = self._once(tasks)
            if not self._claims:
                return
            before = self._n_pending
            for work in self._works:
                self._look_again(work, views)
            if not self._n_pending:
                return
            if n_done or self._n_pending < before:
                wait_s = _WAIT_S
            if not n_done:
                if not told:
                    self._progress.say(self._waited_for())
                told = True
                sleep(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def _once(self, tasks: list[tuple[Unit, ...]]) -> int:
        """Do every unit that can be claimed; returns how many."""
        try:
            with (
                ThreadPoolExecutor(1, thread_name_prefix="writer") as writer,
                closing(prefetch(self._drawn(tasks), _DRAWN_AHEAD)) as drawn,
            ):
                return self._asked(drawn, writer)
        finally:  # after the writer's end: what it still writes is not for others to begin
            for filling in self._open:
                for work in filling.works:
                    work.store.release(filling.unit)
            self._open = []

    def _asked(
        self, drawn: Iterable[tuple[_UnitInProgress, torch.Tensor]], writer: ThreadPoolExecutor
    ) -> int:
        """Show every batch to the sources and have full units written; returns how many units."""
        begun: deque[_Begun] = deque()
        n_units = 0
        for filling, pixels in drawn:
            n_units += filling.begun == 0
            past_half = 2 * (filling.begun + len(pixels)) > len(filling.positions)
            if self._claims or past_half:  # the unit before is written first
                while begun and begun[0][0] is not filling:
                    self._collect(begun.popleft(), writer)
                self._written()
            begun.append(self._begin(filling, pixels))
            if len(begun) > _IN_FLIGHT:
                self._collect(begun.popleft(), writer)
        while begun:
            self._collect(begun.popleft(), writer)
        self._written()
        return n_units

    def _begin(self, filling: _UnitInProgress, pixels: torch.Tensor) -> _Begun:
        """Start a batch's forwards."""
        at = filling.begun
        filling.begun += len(pixels)
        asked = [work.frozen for work in filling.works if work.frozen]
        shown = to_device(pixels, asked[0].device)
        return filling, at, [frozen.submit(shown) for frozen in asked]

    def _drawn(self, tasks: list[tuple[Unit, ...]]) -> Generator[tuple[_UnitInProgress, torch.Tensor]]:
        """The pictures of every unit that this process gets hold of, batch by batch."""
        for units in tasks:
            task = [unit for unit in units if any(unit in work.pending for work in self._works)]
            with self._renderer.keeping() if self._fit_in_memory(task) else nullcontext():
                for unit in task:
                    works = self._claimed(unit)
                    if works:
                        filling = _UnitInProgress(unit, works, self._positions(unit))
                        self._open.append(filling)
                        batches = in_batches(filling.positions, self._batch_size)
                        with closing(self._renderer.render(unit.view, batches)) as drawn:
                            for pixels in drawn:
                                yield filling, pixels

    def _fit_in_memory(self, task: list[Unit]) -> bool:
        """Whether a task's pictures are worth keeping decoded, and few enough."""
        if len(task) < 2 or self._dataset.kind != "files":
            return False
        sizes = self._dataset.sizes[self._positions(task[0])]
        return 3 * int(sizes.prod(axis=1, dtype=np.int64).sum()) <= memory_for_images()

    def _claimed(self, unit: Unit) -> list[SourceStore]:
        """The sources that lack a unit and whose stores let this process do it."""
        held = [work for work in self._works if unit in work.pending and work.store.claim(unit)]
        done = [work for work in held if work.store.finished(unit)]  # by another process, since we looked
        for work in done:
            work.store.release(unit)
        return [work for work in held if work not in done]

    def _collect(self, begun: _Begun, writer: ThreadPoolExecutor) -> None:
        """Wait for a batch's logits; the last of a unit sends it to the writer."""
        filling, at, asked = begun
        n = 0
        for work, out, wait in zip(filling.works, self._room(filling), asked, strict=True):
            logits = wait()
            n = len(logits)
            out[at : at + n] = logits
            self._progress.advance(n, bar=work.bar)
        if at + n == len(filling.positions):
            self._writing = writer.submit(self._commit, filling)

    def _room(self, filling: _UnitInProgress) -> list[torch.Tensor]:
        if not filling.logits:
            n = len(filling.positions)
            filling.logits = [
                torch.empty((n, work.store.n_classes), dtype=torch.float16, device=work.frozen.device)
                for work in filling.works
                if work.frozen
            ]
        return filling.logits

    def _written(self) -> None:
        """Wait for the unit that is being written, and raise what went wrong with it."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _commit(self, filling: _UnitInProgress) -> None:
        """Write a unit to every store that lacks it; a source that failed does not cost the others theirs."""
        failed: Exception | None = None
        for work, logits in zip(filling.works, filling.logits, strict=True):
            started = perf_counter()
            try:
                self._require_finite(work, filling, logits)
                top_k = work.store.top_k
                rows = logits if top_k is None else encode(logits, top_k)
                if not work.store.write_unit(filling.unit, rows.cpu().numpy()):
                    work.rows_twice += len(logits)
            except (SourceError, CacheError) as error:
                failed = failed or error
                continue
            work.pending.discard(filling.unit)
            work.store.release(filling.unit)
            work.rows_done += len(logits)
            work.write_s += perf_counter() - started
        if failed is not None:
            raise failed
        self._open.remove(filling)

    def _require_finite(self, work: SourceStore, filling: _UnitInProgress, logits: torch.Tensor) -> None:
        """Raise SourceError, naming the samples, if any row is not finite."""
        try:
            if work.frozen is not None:
                work.frozen.require_finite(logits)
        except NonFiniteLogitsError as error:
            bad = [int(filling.positions[row]) for row in error.rows[:3]]
            names = ", ".join(f"{self._dataset.ids[p]} ({self._dataset.name_of(p)})" for p in bad)
            raise SourceError(
                f"{error}; view {filling.unit.view}, samples {names}; nothing of this unit was kept"
            ) from error

    @property
    def _n_pending(self) -> int:
        return sum(len(work.pending) for work in self._works)

    def _waited_for(self) -> str:
        """What this process waits for, as a sentence."""
        work = next(work for work in self._works if work.pending)
        first = min(work.pending)
        return (
            f"{self._dataset.target}: waiting for {self._n_pending} unit(s) that other processes have "
            f"claimed, {first} of {work.source.spec.name} first; a process that is stopped keeps its claims: "
            f"let it go on, or end it"
        )

    def _look_again(self, work: SourceStore, views: int) -> None:
        """What other processes have finished meanwhile is not pending any more."""
        if work.pending:
            left = set(work.store.pending(views)) & work.pending
            self._progress.advance(sum(map(self._n_rows, work.pending - left)), bar=work.bar)
            work.pending = left

    def _positions(self, unit: Unit) -> NDArray[np.int64]:
        """The index rows of a unit."""
        rows = self._works[0].store.rows_of(unit.block)
        return np.arange(rows.start, rows.stop)

    def _n_rows(self, unit: Unit) -> int:
        return len(self._positions(unit))
