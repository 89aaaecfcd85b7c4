"""Kill stage one with SIGKILL, again and again, at random moments; then check its store.

    python benchmarks/kill_campaign.py --data-dir data --kills 100 --ranks 1 \
        --source imagenet --weights imagenet=resnet50.safetensors --source program:squeezenet.pt2

Several outputs of a network, such as `--source imagenet --source imagenet@layer4:2`, come from one forward.
Every life is a separate process (two with --ranks 2, killed together or one at a time) that runs the real
precompute from the start. Checked at the end, after a last uninterrupted run: every unit and table has the
same bytes as in a store that was never interrupted, nothing unfinished is left over, verify finds nothing,
and each killed process cost at most one unit per source. Meanwhile a reader requests whole views, and must
get either a correct one or an error.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np

from cache.cleanup import leftovers
from cache.errors import StoreIncomplete
from cache.store import Store, find_stores


def life(args: argparse.Namespace, stores: Path, rank: int, log: Path | None) -> None:
    """One run of stage one, which logs every batch before its forwards begin."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(args.ranks)}
    from pipeline import api
    from pipeline.data.augmentation import Augmentation
    from pipeline.precompute.worker import Worker
    from pipeline.runtime.execution import choose_execution
    from pipeline.runtime.paths import Paths

    start = Worker._start

    def start_and_log(worker, partial, pixels):
        if log is not None:
            with log.open("a") as file:
                file.writelines(
                    f"{os.getpid()}\t{name_of(w.store.path)}\t{partial.unit}\t{len(pixels)}\n"
                    for w in partial.source_stores
                )
        return start(worker, partial, pixels)

    Worker._start = start_and_log
    weights = {name: Path(path) for name, _, path in (pair.partition("=") for pair in args.weights)}
    api.precompute(
        [args.target],
        args.source,
        views=args.views,
        augmentation=Augmentation(),
        paths=Paths(args.data_dir, stores, weights),
        execution=choose_execution(device="cpu", amp="auto", renderer="auto", threads=2, compiled=False),
        limit=args.samples,
    )


def name_of(path: Path) -> str:
    """A store by its source and its fingerprint, since outputs of one network lie side by side."""
    return f"{path.parent.name}/{path.name}"


def campaign(args: argparse.Namespace, folder: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch", "torchvision", "zarr", "pipeline.api", "pipeline.data.render.dali"]
    )
    rng = random.Random(args.seed)
    whole, hurt, log = folder / "whole", folder / "hurt", folder / "log"
    log.touch()

    def start(stores: Path, rank: int, log: Path | None):
        process = context.Process(target=life, args=(args, stores, rank, log))
        process.start()
        return process

    started = time.perf_counter()
    for process in [start(whole, rank, None) for rank in range(args.ranks)]:
        process.join()
        assert process.exitcode == 0, "the run that is left alone failed"
    alone_s = time.perf_counter() - started
    expected = {name_of(path): Store.open(path) for path in find_stores(whole)}
    print(
        f"{len(expected)} stores of {args.views} units, {alone_s:.0f} s without kills, "
        f"{args.ranks} process(es)"
    )

    reading = Reading(hurt, expected)
    kills = 0
    while kills < args.kills:
        processes = [start(hurt, rank, log) for rank in range(args.ranks)]
        kills += kill_some(processes, rng, args.longest)
        left = sum(len(Store.open(p).pending(args.views)) for p in find_stores(hurt))
        print(f"\r{kills} kills, {left} units left, {reading.views} whole views read  ", end="", flush=True)
        if kills < args.kills and left == 0 and find_stores(hurt):
            raise SystemExit(
                f"\nall units were done after {kills} kills; use more --views or a smaller --longest"
            )
    for process in [start(hurt, rank, log) for rank in range(args.ranks)]:
        process.join()
        assert process.exitcode == 0, "the last run failed"
    reading.stop()

    n_units, lost = lost_rows(log)
    require_same_files(expected, hurt)
    n_rows = next(iter(expected.values())).block_rows
    most = max(lost.values(), default=0)
    assert most <= n_rows, f"a killed process lost {most} rows of a source, {n_rows} allowed"
    assert not reading.wrong, reading.wrong
    print(
        f"\n{kills} kills: every file the same bytes as without; {n_units} units of {n_rows} rows; "
        f"{len({pid for pid, _ in lost})} of the killed had begun a unit, which was begun again: "
        f"{sum(lost.values())} rows of all sources, of a source and kill at most {most} (one unit allowed); "
        f"{reading.views} whole views read, {reading.refused} refused, none wrong"
    )


def kill_some(processes, rng: random.Random, longest: float) -> int:
    """Kill all processes of a life or one of them, then what is left; returns how many died by SIGKILL."""
    kills = 0
    time.sleep(rng.uniform(0, longest))
    victims = processes if rng.random() < 0.5 else [rng.choice(processes)]
    for process in victims:
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
    for process in processes:  # surviving ranks go on for a moment
        process.join(timeout=0 if process in victims else rng.uniform(0, longest))
        if process.is_alive() and process not in victims:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
    return kills


def require_same_files(expected: dict[str, Store], hurt: Path) -> None:
    """Every file of the stores has the bytes of the undisturbed run, and nothing else is left beside."""
    for name, whole_store in expected.items():
        (path,) = [p for p in find_stores(hurt) if name_of(p) == name]
        assert Store.open(path).verify() == []
        for folder_name in (whole_store.form.array, "units", "ids", "contents", "probe_ids", "probe"):
            ours, theirs = (sorted((s / folder_name).iterdir()) for s in (path, whole_store.path))
            assert [f.name for f in ours] == [f.name for f in theirs], folder_name
            for a, b in zip(ours, theirs, strict=True):
                assert a.read_bytes() == b.read_bytes(), f"{a} differs"
    half_made = [
        path for path in leftovers(hurt) if ".zarr.tmp-" in path.name
    ]  # `sskt cache prune` removes them
    assert leftovers(hurt) == half_made


def lost_rows(log: Path) -> tuple[int, Counter[tuple[str, str]]]:
    """The number of units, and the rows that each process began for each store but did not finish."""
    rows_of: dict[tuple[str, str], dict[str, int]] = {}
    for line in log.read_text().splitlines():
        pid, store, unit, n = line.split("\t")
        rows = rows_of.setdefault((store, unit), {})
        rows[pid] = rows.pop(pid, 0) + int(n)
    lost: Counter[tuple[str, str]] = Counter()
    for (store, _), rows in rows_of.items():
        for pid in list(rows)[:-1]:  # the last one finished it
            lost[pid, store] += rows[pid]
    return len(rows_of), lost


class Reading:
    """A thread that reads whole views of the stores while their writers are killed."""

    def __init__(self, folder: Path, expected: dict[str, Store]) -> None:
        self.views, self.refused, self.wrong = 0, 0, ""
        self._folder, self._expected, self._running = folder, expected, True
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        rng = random.Random(0)
        while self._running:
            time.sleep(0.02)
            for path in find_stores(self._folder):
                view = rng.randrange(next(iter(self._expected.values())).n_views)
                try:
                    rows = Store.open(path).view(view)
                except StoreIncomplete:
                    self.refused += 1
                    continue
                self.views += 1
                if not np.array_equal(rows, self._expected[name_of(path)].view(view)):
                    self.wrong = f"{path}: view {view} was read and is wrong"

    def stop(self) -> None:
        self._running = False
        self._thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="cifar10")
    parser.add_argument("--source", action="append", required=True)
    parser.add_argument("--weights", action="append", default=[])
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--views", type=int, default=60)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--longest", type=float, default=6.0, help="seconds of a life, at most")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        campaign(args, Path(folder))


if __name__ == "__main__":
    main()
