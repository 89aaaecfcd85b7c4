"""The local engine: fill the stores of one job in this process, which may be one of several ranks."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from time import perf_counter

from cache import Location
from pipeline.precompute.sharding import Task, share_of, split_tasks
from pipeline.precompute.worker import open_worker
from pipeline.runtime import Execution, Progress, World
from pipeline.stores import Job, SourceStore, log_knowledge, open_source_stores

log = logging.getLogger(__name__)


@dataclass(slots=True)
class StoreReport:
    """What stage one did for one source."""

    source: str
    path: Location
    n_samples: int
    n_classes: int  # numbers of a row, where no logits are stored
    views: int
    rows_done: int = 0  # rows computed by this call, not by earlier calls or other processes
    write_s: float = 0.0
    wall_s: float = 0.0  # drawing, forwards and writing; opening stores and sources is not included
    nbytes: int = 0

    @classmethod
    def of(cls, source_store: SourceStore, job: Job, wall_s: float = 0.0) -> StoreReport:
        """The report of what this process has done for a store."""
        return cls(
            source_store.source.spec.name,
            source_store.store.path,
            len(job.dataset),
            source_store.store.n_classes,
            job.views,
            rows_done=source_store.rows_done,
            write_s=source_store.write_s,
            wall_s=wall_s,
            nbytes=source_store.store.nbytes,
        )

    def to_dict(self) -> dict[str, object]:
        """Plain data for `--json`."""
        rate = self.rows_done / self.wall_s if self.rows_done else None
        return {**asdict(self), "path": str(self.path), "images_s": rate}


def fill_stores(job: Job, *, cache_dir: Location, execution: Execution, world: World) -> list[StoreReport]:
    """Fill the stores of the job's sources for views 0..views-1; finished units are left alone.

    A rank computes its own share, of all units and not just of those left now: other ranks look at other
    moments. Raises StoreMismatch if a store with the same fingerprint was made at another precision or its
    probe images no longer come out the same, SourceError naming the samples if a source gives logits that are
    not finite, CacheError if the store cannot be written. Units finished before an error or Ctrl-C are kept.
    """
    source_stores = open_source_stores(job, cache_dir, execution)
    started = perf_counter()
    if not any(each.pending for each in source_stores):
        log_complete(job.name, job.views, len(source_stores))
    else:
        with (
            Progress() as progress,
            open_worker(job.dataset, job.source_plan, source_stores, execution, progress) as worker,
        ):
            tasks = share_of(tasks_of(job, source_stores), world)
            worker.show(tasks)
            worker.do(tasks)
        for each in source_stores:
            if each.remark:
                log.info(each.remark)
    if world.size > 1 and (left := sum(len(each.store.pending(job.views)) for each in source_stores)):
        log.info(
            f"{job.name}: {left} units are the other ranks'; run the command again if one of them is lost"
        )
    if world.rank == 0:
        for each in source_stores:
            log_knowledge(each.store, each.source.spec, job.dataset)
    return [StoreReport.of(each, job, perf_counter() - started) for each in source_stores]


def log_complete(name: str, views: int, n_sources: int) -> None:
    """Log that there is nothing to do for a job."""
    log.info(f"{name}: all {views} view(s) of {n_sources} source(s) are already there")


def tasks_of(job: Job, source_stores: list[SourceStore]) -> list[Task]:
    """All tasks of a job, finished or not."""
    n_blocks = source_stores[0].store.n_blocks
    return split_tasks(job.views, n_blocks, decodes=job.dataset.kind == "files")
