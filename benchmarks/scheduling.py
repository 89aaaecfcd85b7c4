"""Simulate a failing cluster: how units are shared, how much is lost, how long the job takes.

    python benchmarks/scheduling.py --rate 3000

Workers take units as in pipeline/precompute/sharding.py and as stage one does for image files, several views
of a block in a row: first their own share, then whatever is unfinished and unclaimed (a file system with
locks), or their own share only (an object store). Speeds differ by up to 10 %, times between failures are
exponential; a failure loses the current unit and the start-up time. Asserted throughout: no unit is claimed
twice at once or counted twice, no death costs more than one unit, all units are finished at the end. --rate
is one worker's mean images/s: take it from `sskt precompute --estimate` on yours.
"""

from __future__ import annotations

import argparse
import heapq
import random
from dataclasses import dataclass, field

from cache.layout import default_block_rows
from cache.unit import Unit
from pipeline.precompute.sharding import split_tasks, task_order
from pipeline.runtime.distributed import World

JOBS = {"ImageNet-1k": 1_281_167, "Places365": 1_803_460}
HOUR = 3600.0


@dataclass(slots=True)
class Outcome:
    """The result of a simulated job."""

    seconds: float  # until the last unit was finished
    ideal: float  # without failures, start-up time or waiting for the last unit
    deaths: int
    lost: int  # units that were being computed when their worker died


@dataclass(slots=True)
class _Worker:
    share: World
    speed: float  # rows per second
    order: list[Unit] = field(default_factory=list)
    at: int = 0
    doing: Unit | None = None
    life: int = 0  # events of earlier lives are ignored


def simulate(
    views: int,
    n_blocks: int,
    rows: int,
    n_workers: int,
    *,
    rate: float,
    mtbf_s: float | None,
    locks: bool,
    seed: int = 0,
    spread: float = 0.1,
    start_s: float = 60.0,
    restart_s: float | None = 300.0,
    all_die_at: float | None = None,
) -> Outcome:
    """Simulate one job; `mtbf_s` is a worker's mean time between failures, None for never; with `restart_s`
    None, dead workers stay dead, except the first.
    """
    rng = random.Random(seed)
    tasks, n_units = split_tasks(views, n_blocks, decodes=True), views * n_blocks
    speeds = [rng.uniform(1 - spread, 1 + spread) for _ in range(n_workers)]
    mean = sum(speeds) / n_workers  # so that the mean speed is exactly `rate`, even of a single worker
    workers = [_Worker(World(rank, n_workers), rate * speed / mean) for rank, speed in enumerate(speeds)]
    finished, claimed = set[Unit](), dict[Unit, int]()
    events: list[tuple[float, int, str, int, int]] = []
    outcome = Outcome(0.0, n_units * rows / (rate * n_workers), 0, 0)
    number = 0

    def push(at: float, kind: str, rank: int) -> None:
        nonlocal number
        number += 1
        heapq.heappush(events, (at, number, kind, rank, workers[rank].life))

    def start(rank: int, now: float) -> None:
        worker = workers[rank]
        turns = task_order(tasks, worker.share, steal=locks)
        worker.order, worker.at = [unit for task in turns for unit in task], 0
        push(now + start_s, "look", rank)
        if mtbf_s is not None:
            push(now + rng.expovariate(1 / mtbf_s), "die", rank)

    def die(rank: int, now: float) -> None:
        worker = workers[rank]
        outcome.deaths += 1
        if worker.doing is not None:
            assert claimed.pop(worker.doing) == rank, "a claim belongs to one worker"
            outcome.lost += 1
            worker.doing = None
        worker.life += 1
        if restart_s is not None or rank == 0:
            push(now + (restart_s or 300.0), "start", rank)

    for rank in range(n_workers):
        start(rank, 0.0)
        if all_die_at is not None:
            push(all_die_at, "die", rank)
    while len(finished) < n_units:
        now, _, kind, rank, life = heapq.heappop(events)
        worker = workers[rank]
        if life != worker.life:
            continue
        if kind == "start":
            start(rank, now)
        elif kind == "die":
            die(rank, now)
        elif kind == "done":
            unit = worker.doing
            assert unit is not None
            assert claimed.pop(unit) == rank, "a claim belongs to one worker"
            assert unit not in finished, "a unit counts once"
            finished.add(unit)
            worker.doing = None
            push(now, "look", rank)
            outcome.seconds = now
        else:
            _take_next(worker, rank, finished, claimed)
            if worker.doing is not None:
                push(now + rows / worker.speed, "done", rank)
            elif locks and len(finished) < n_units:
                worker.at = 0
                push(now + 1.0, "look", rank)  # everything left is claimed: look again
    assert outcome.lost <= outcome.deaths, "no death costs more than one unit"
    return outcome


def _take_next(worker: _Worker, rank: int, finished: set[Unit], claimed: dict[Unit, int]) -> None:
    """Claim the worker's next unit that is neither finished nor claimed, if there is one."""
    while worker.at < len(worker.order):
        unit = worker.order[worker.at]
        worker.at += 1
        if unit not in finished and unit not in claimed:
            claimed[unit] = rank
            worker.doing = unit
            return


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=3000.0, help="images/s of one worker, all sources")
    parser.add_argument("--views", type=int, default=10)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64, 256])
    args = parser.parse_args()
    print("| job | units | workers | each fails every | store | hours | of the ideal | deaths | units lost |")
    print("|---" * 9 + "|")
    for name, n in JOBS.items():
        rows = default_block_rows(n)
        n_blocks = -(-n // rows)
        n_units = args.views * n_blocks
        for n_workers in args.workers:
            for mtbf_h, locks in ((None, True), (24, True), (1, True), (1, False)):
                mtbf_s = None if mtbf_h is None else mtbf_h * HOUR
                job = simulate(
                    args.views, n_blocks, rows, n_workers, rate=args.rate, mtbf_s=mtbf_s, locks=locks
                )
                fails = "never" if mtbf_h is None else f"{mtbf_h} h"
                where = "locks" if locks else "object store"
                print(
                    f"| {name} | {n_units:,} | {n_workers} | {fails} | {where} | {job.seconds / HOUR:.2f} | "
                    f"{job.seconds / job.ideal:.2f} | {job.deaths} | {job.lost} |"
                )


if __name__ == "__main__":
    main()
