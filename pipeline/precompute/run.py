"""Stage one: run the frozen sources over every planned view of a target and keep their logits (SSKT eq. 5,
6).

Work is cut into units, (view, block of samples). One pass over the pictures of a unit feeds every source that
still lacks it, and each source's unit is committed whole, so a stopped run is continued by running it again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

from cache.storage import Location
from pipeline.data.render import open_renderer
from pipeline.precompute.worker import Crew
from pipeline.runtime.distributed import Share
from pipeline.runtime.execution import Execution, drawn_at_a_time
from pipeline.runtime.progress import Progress
from pipeline.stores.class_check import say_what_rows_know
from pipeline.stores.fill import Work, open_work
from pipeline.stores.job import Job
from sskt.errors import RunError

Say = Callable[[str], None]


@dataclass(slots=True)
class StoreReport:
    """What stage one did for one source."""

    source: str
    path: Location
    n_samples: int
    n_classes: int
    views: int
    rows_done: int = 0  # rows computed by this call; those of earlier calls and other processes do not count
    write_s: float = 0.0
    wall_s: float = 0.0  # of drawing, asking and writing; stores and sources are open by then
    nbytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        rate = self.rows_done / self.wall_s if self.rows_done else None
        return {**asdict(self), "path": str(self.path), "images_s": rate}


def precompute(
    job: Job, *, cache_dir: Location, execution: Execution, share: Share, say: Say
) -> list[StoreReport]:
    """Fill the stores of the job's sources for views 0..views-1; finished units are left alone.

    Other processes may work on the same stores: units are shared by `share` and by claims. Raises
    StoreMismatch if a store with the same fingerprint was made at another precision or its probe pictures no
    longer come out the same, SourceError naming the samples if a source gives logits that are not finite,
    CacheError if the store cannot be written. Units finished before an error or Ctrl-C are kept.
    """
    if job.views < 1:
        raise RunError(f"--views is {job.views}, expected at least 1")
    works = [
        open_work(job, source, input_map, cache_dir, execution, say) for source, input_map in job.sources
    ]
    started = perf_counter()
    todo = sum(len(work.pending) for work in works)
    if not todo:
        say(f"{job.name}: all {job.views} view(s) of {len(works)} source(s) are already there")
    else:
        rows = max(work.frozen.forward.rows for work in works if work.frozen)
        batch = drawn_at_a_time(rows)
        renderer = open_renderer(job.index, job.seen, execution, batch_size=batch)
        with closing(renderer), Progress() as progress:
            crew = Crew(job.index, works, renderer, share, batch_size=batch, progress=progress)
            crew.work(job.views)
        for work in works:
            if work.remark:
                say(work.remark)
        left = sum(len(work.store.pending(job.views)) for work in works)
        if left:
            say(
                f"{job.name}: {left} units are the other ranks'; run the command again if one of them is lost"
            )
    if share.rank == 0:
        for work in works:
            say_what_rows_know(work.store, work.source.spec, job.index, say)
    return [_report(work, job, perf_counter() - started) for work in works]


def _report(work: Work, job: Job, wall_s: float) -> StoreReport:
    return StoreReport(
        work.source.spec.name,
        work.store.path,
        len(job.index),
        work.store.n_classes,
        job.views,
        rows_done=work.rows_done,
        write_s=work.write_s,
        wall_s=wall_s,
        nbytes=work.store.nbytes,
    )
