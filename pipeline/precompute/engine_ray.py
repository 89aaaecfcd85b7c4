"""The Ray engine: stage one's tasks on the machines of a Ray cluster (`--engine ray`).

They are Ray tasks, not actors: what a lost worker or node had begun is run elsewhere at once. A worker
process opens the job with its first task and keeps it. Only names, unit numbers and row counts cross the
network. The driver reads neither images nor networks nor stores; if it is lost, so are the tasks in flight.
"""

from __future__ import annotations

import logging.handlers
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, time_ns
from typing import Any

from cache import Location, Store, Unit, differences
from pipeline.precompute.fill import StoreReport, log_complete, tasks_of
from pipeline.precompute.ray_cluster import connected, first_line, room_for_workers, settle, worker_needs
from pipeline.precompute.worker import Worker, n_rows, open_worker
from pipeline.runtime import Execution, Progress, ask_for_large_pages, choose_execution, mute_remarks
from pipeline.stores import Job, destination, log_knowledge, open_source_stores
from sskt.errors import RunError

log = logging.getLogger(__name__)

_Tasks = list[tuple[Unit, ...]]
_GROUP_S = 30.0  # of work to a Ray task: its overhead is milliseconds, and a lost one is done again
_RETRIES = 20  # of a task whose worker or node dies
_STOP_S = 30.0  # for writes that are under way when the command is stopped


@dataclass(frozen=True, slots=True)
class _Order:
    """What every worker is told. Device, precision and rows per forward are its own choice."""

    open_jobs: Callable[[], list[Job]]
    cache_dir: Location
    asked: dict[str, Any]  # of `choose_execution`
    n_workers: int | None
    needs: dict[str, float]  # of Ray's resources, per worker
    folder: str = field(default_factory=lambda: str(Path.cwd()))  # for relative paths
    number: int = field(default_factory=time_ns)  # unlike an earlier call's


@dataclass(frozen=True, slots=True)
class _Found:
    """A job as a worker finds it."""

    name: str
    n_jobs: int
    reports: list[StoreReport]
    pending: list[dict[Unit, int]]  # what each store lacks: units and their rows
    tasks: _Tasks  # those with any of these units
    remarks: list[tuple[int, str]]  # level and text


# ---- in a worker ----


class _Opened:
    """A job, opened in a worker process. Raises RunError where this node would fill other stores than the
    first worker's, which are `paths`.
    """

    def __init__(self, order: _Order, at: int, paths: list[Location]) -> None:
        self.key, self.stack = (order.number, at), ExitStack()
        self._worker: Worker | None = None
        ask_for_large_pages()
        node = settle(order.folder, order.needs, order.n_workers)
        self._execution, jobs = choose_execution(**order.asked), order.open_jobs()
        self.n_jobs, self.job = len(jobs), jobs[at]
        for path, (source, input_map) in zip(paths, self.job.sources, strict=bool(paths)):
            with mute_remarks():
                here = destination(self.job, source, input_map, order.cache_dir)
            if here.path != path:
                what = map(str, differences(Store.open(path).manifest.identity, here.fields)[:2])
                raise RunError(
                    f"node {node}: {self.job.name} is not what the first node has, which fills {path} "
                    f"({'; '.join(what)}); give every node the same images, labels and weights"
                )
        self.stores = open_source_stores(self.job, order.cache_dir, self._execution)

    @property
    def worker(self) -> Worker:
        """Computes what the stores lack."""
        if self._worker is None:
            job, how = self.job, self._execution
            opening = open_worker(job.dataset, job.source_plan, self.stores, how, Progress())
            self._worker = self.stack.enter_context(opening)
        return self._worker


_opened: _Opened | None = None


def _open(order: _Order, at: int, paths: list[Location]) -> _Opened:
    global _opened  # what Ray keeps between two tasks is the process
    if _opened is None or _opened.key != (order.number, at):
        if _opened is not None:
            _opened.stack.close()
        _opened = _Opened(order, at, paths)
    return _opened


def _look(order: _Order, at: int, paths: list[Location]) -> _Found:
    """Create a job's stores, or find what they lack."""
    kept = logging.handlers.BufferingHandler(10_000)
    logging.basicConfig(level=logging.INFO, handlers=[kept], force=True)  # the process is ours
    opened = _open(order, at, paths)
    job, stores = opened.job, opened.stores
    pending = [{u: n_rows(s.store, [u]) for u in s.store.pending(job.views)} for s in stores]
    left = set[Unit]().union(*pending)
    for each in () if left else stores:
        each.store.sweep()  # what killed workers have left
        log_knowledge(each.store, each.source.spec, job.dataset)
    ours = [each for each in kept.buffer if each.name.partition(".")[0] in ("pipeline", "sskt", "cache")]
    remarks = [(each.levelno, each.getMessage()) for each in ours]
    tasks = [task for task in tasks_of(job, stores) if left.intersection(task)]
    reports = [StoreReport.of(each, job) for each in stores]
    return _Found(job.name, opened.n_jobs, reports, pending, tasks, remarks)


def _do(order: _Order, at: int, paths: list[Location], tasks: _Tasks) -> list[float]:
    """Compute the units of some tasks; returns the seconds that took, and those of writing to each store."""
    opened = _open(order, at, paths)
    started, before = perf_counter(), [each.write_s for each in opened.stores]
    opened.worker.do(tasks)
    took = perf_counter() - started
    return [took, *(each.write_s - b for each, b in zip(opened.stores, before, strict=True))]


# ---- in the driver ----


def fill_with_ray(
    open_jobs: Callable[[], list[Job]], *, cache_dir: Location, execution: Execution, n_workers: int | None
) -> list[StoreReport]:
    """Fill the stores of the jobs that `open_jobs`, which is pickled, opens in a worker; see `fill_stores`.

    `n_workers` at a time, or as many as the cluster has GPUs or, without any, nodes. The cluster is that of
    RAY_ADDRESS, else one on this machine for as long as the call takes. Raises RunError if it cannot be
    reached or gives a task up, or if a node's files are not the first one's, and what `fill_stores` raises.
    """
    with connected() as ray:
        needs = worker_needs(ray, execution.asked.get("device"), n_workers)
        driver = _Driver(ray, _Order(open_jobs, cache_dir, execution.asked, n_workers, needs))
        reports, at = list[StoreReport](), 0
        while at < driver.n_jobs:
            reports += driver.fill(at)
            at += 1
        return reports


class _Driver:
    """Hands out the tasks of an order's jobs."""

    def __init__(self, ray: Any, order: _Order) -> None:
        self._ray, self._order, self._ref = ray, order, ray.put(order)
        self._said, self.n_jobs = set[tuple[int, str]](), 1
        how: dict[str, Any] = {f"num_{n.lower()}s": need for n, need in order.needs.items()}
        how |= {"max_retries": _RETRIES, "max_calls": 0, "scheduling_strategy": "SPREAD"}
        self._look, self._do = ray.remote(**how)(_look), ray.remote(**how)(_do)

    def fill(self, at: int) -> list[StoreReport]:
        """Fill the stores of one job."""
        found = self._find(at, [])
        if not found.tasks:
            log_complete(found.name, found.reports[0].views, len(found.reports))
            return found.reports
        started, paths = perf_counter(), [report.path for report in found.reports]
        write_s = self._work(at, paths, found)
        wall_s, left = perf_counter() - started, self._find(at, paths)
        if left.tasks:
            log.warning(
                f"units of {len(left.tasks)} tasks were deleted meanwhile; run the same command again"
            )
        for report, seconds, was, now in zip(left.reports, write_s, found.pending, left.pending, strict=True):
            report.rows_done = sum(was.values()) - sum(now.values())
            report.write_s, report.wall_s = seconds, wall_s
        return left.reports

    def _find(self, at: int, paths: list[Location]) -> _Found:
        """A job as a worker finds it, whose remarks are passed on once."""
        with self._cancelling([self._look.remote(self._ref, at, paths)]) as (ref,):
            found: _Found = self._result(ref)
        for remark in found.remarks:
            if remark not in self._said:
                log.log(*remark)
        self._said.update(found.remarks)
        self.n_jobs = found.n_jobs
        return found

    def _work(self, at: int, paths: list[Location], found: _Found) -> list[float]:
        """Run a job's tasks in groups of about `_GROUP_S`; returns the seconds of writing to each store."""
        waiting, in_flight = [*found.tasks], dict[Any, _Tasks]()
        n_done, spent = 0, [0.0] * (1 + len(paths))
        with Progress() as progress, self._cancelling(in_flight):
            bars = []
            for report, rows in zip(found.reports, found.pending, strict=True):
                total = report.views * report.n_samples
                bars.append(progress.add(report.source, total=total, done=total - sum(rows.values())))
            while waiting or in_flight:
                has = self._ray.cluster_resources()
                room = self._order.n_workers or 2 * room_for_workers(has, self._order.needs)
                size = min(
                    int(_GROUP_S * n_done / max(spent[0], 1e-9)) if n_done else 1, len(waiting) // room
                )
                while waiting and len(in_flight) < room:
                    group, waiting = waiting[: max(1, size)], waiting[max(1, size) :]
                    in_flight[self._do.remote(self._ref, at, paths, group)] = group
                for ref in self._ray.wait([*in_flight], timeout=1.0)[0]:
                    spent = [a + b for a, b in zip(spent, self._result(ref), strict=True)]
                    group = in_flight.pop(ref)
                    n_done += len(group)
                    for bar, rows in zip(bars, found.pending, strict=True):
                        progress.advance(sum(rows.get(u, 0) for task in group for u in task), bar=bar)
        return spent[1:]

    @contextmanager
    def _cancelling(self, refs: Collection[Any]) -> Iterator[Collection[Any]]:
        """Cancel what is in flight after Ctrl-C or an error; writes that are under way are finished."""
        try:
            yield refs
        except BaseException:
            for ref in refs:
                self._ray.cancel(ref)
            if refs:
                self._ray.wait([*refs], num_returns=len(refs), timeout=_STOP_S)
            raise

    def _result(self, ref: Any) -> Any:
        """What a task returns. Raises what it raised, or RunError if Ray has given it up."""
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            raise RunError(
                f"Ray gave up a task, after {_RETRIES} retries if its worker died ({first_line(error)}); "
                f"finished units are kept, and the same command continues from there"
            ) from error
