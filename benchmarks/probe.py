"""Seconds and peak memory of `sskt probe`, and of one fit by L-BFGS beside scikit-learn's.

    python benchmarks/probe.py
    python benchmarks/probe.py --fit
    python benchmarks/probe.py --target cifar10 --data-dir data --cache-dir stores

The first makes two stores of random rows around the centres of classes (50,000 samples, 10 views, 1,000 and
365 columns, 10 classes) and compares them; the last compares real ones. CPU seconds are those of all threads:
on a machine with other work, they say more than the clock.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

COLUMNS = {"imagenet": 1000, "places365": 365}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--views", type=int, default=10)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--fit", action="store_true", help="One fit of both sources' columns instead.")
    parser.add_argument("--target", help="A target whose stores are there.")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--cache-dir", default="stores")
    args = parser.parse_args()
    if args.fit:
        _in_process(_time_fits, args.samples, args.classes)
    elif args.target:
        _in_process(_look_at_real, args.target, args.data_dir, args.cache_dir)
    else:
        with tempfile.TemporaryDirectory() as folder:
            _in_process(_make_stores, Path(folder), args.samples, args.views, args.classes)
            _in_process(_look_at_made, Path(folder), args.samples, args.classes)


def _in_process(function, *arguments) -> None:
    """Call in a process of its own, whose peak memory is that of the call."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(function, arguments)


def _dataset(n: int, n_classes: int):
    """n samples of no content: a look at the sources reads no image."""
    from pipeline.data.datasets.images import array_dataset

    labels = np.random.default_rng(0).permutation(np.arange(n) % n_classes).astype(np.int64)
    pixels = np.zeros((n, 1, 1, 3), dtype=np.uint8)
    classes = tuple(f"class {c}" for c in range(n_classes))
    return array_dataset("made", "train", classes, pixels, labels, np.arange(n))


def _make_stores(folder: Path, n: int, views: int, n_classes: int) -> None:
    """A row: its class's centre, its sample's own offset and its view's noise; about as easy as CIFAR-10."""
    from cache import Store
    from cache.manifest import Manifest

    labels, rng = _dataset(n, n_classes).labels, np.random.default_rng(1)
    for name, columns in COLUMNS.items():
        identity = {
            "source": {"name": name},
            "input": {"side_px": 74},
            "plan": {"side_px": 32, "kind": "made"},
        }
        store = Store.create(
            folder / f"{name}.zarr",
            Manifest(identity=identity, made_by={}),
            ids=np.arange(n),
            contents=np.zeros((n, 16), dtype=np.uint8),
            n_classes=columns,
            views=views,
            block_rows=4096,
        )
        mixing = rng.standard_normal((40, columns), dtype=np.float32) / 6
        offsets = rng.standard_normal((n_classes, 40), dtype=np.float32)[labels] * 0.5
        offsets += 0.8 * rng.standard_normal((n, 40), dtype=np.float32)
        for unit in store.pending(views):
            rows = offsets[store.rows_of(unit.block)]
            seen = rows + 0.6 * rng.standard_normal(rows.shape, dtype=np.float32)
            logits = seen @ mixing + 0.7 * rng.standard_normal((len(rows), columns), dtype=np.float32)
            store.write_unit(unit, (2 * logits).astype(np.float16))


def _look_at_made(folder: Path, n: int, n_classes: int) -> None:
    from cache import Store
    from pipeline.studies.probe.rows import Samples
    from pipeline.studies.probe.run import compare
    from pipeline.studies.probe.stored import StoreGroup

    started, before = time.perf_counter(), time.process_time()
    group = StoreGroup({name: Store.open(folder / f"{name}.zarr") for name in COLUMNS})
    _, report = compare([group], Samples(_dataset(n, n_classes)), temperature=3.0)
    _print(report, time.perf_counter() - started, time.process_time() - before)


def _look_at_real(target: str, data_dir: str, cache_dir: str) -> None:
    from pipeline import api
    from pipeline.api import Paths

    started, before = time.perf_counter(), time.process_time()
    report = api.probe(target, paths=Paths(Path(data_dir), Path(cache_dir)))
    _print(report, time.perf_counter() - started, time.process_time() - before)


def _print(report, seconds: float, cpu_seconds: float) -> None:
    print("| sources | views | accuracy, % | one view, % | kNN, % | LEEP | H-score | C of the folds | s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in report["rows"]:
        one, leep = (row[key] if row[key] is not None else float("nan") for key in ("one_view", "leep"))
        strengths = ", ".join(f"{strength:g}" for strength in row["strengths"])
        print(
            f"| {row['name']} | {row['views']} | {row['accuracy']:.2f} ± {row['spread']:.2f} | {one:.2f} "
            f"| {row['knn']:.2f} | {leep:.3f} | {row['h_score']:.2f} | {strengths} | {row['seconds']:.1f} |"
        )
    print(f"{seconds:.0f} s, {cpu_seconds:.0f} CPU s, peak RSS {_peak_gb():.2f} GB", flush=True)


def _time_fits(n: int, n_classes: int) -> None:
    """One fit by both, of the same rows and strength, until each says that it has converged."""
    import torch
    from sklearn.linear_model import LogisticRegression

    from sskt.probe import fit_linear

    rng, columns = np.random.default_rng(0), sum(COLUMNS.values())
    labels = np.arange(n) % n_classes
    hidden = 0.5 * rng.standard_normal((n_classes, 40), dtype=np.float32)[labels]
    hidden += rng.standard_normal((n, 40), dtype=np.float32)
    x = hidden @ rng.standard_normal((40, columns), dtype=np.float32) / 6
    x += 0.7 * rng.standard_normal((n, columns), dtype=np.float32)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    print("| C | fit | s | CPU s | peak RSS, GB | same class as the other |\n|---|---|---|---|---|---|")
    for strength in (1e-4, 1e-3, 1e-2):
        started, before = time.perf_counter(), time.process_time()
        probe = fit_linear(torch.from_numpy(x), torch.from_numpy(labels), n_classes, strength=strength)
        ours = probe.logits(torch.from_numpy(x)).argmax(dim=1).numpy()
        _print_fit(strength, "L-BFGS, torch", started, before, "")
        started, before = time.perf_counter(), time.process_time()
        theirs = LogisticRegression(C=strength, max_iter=1000).fit(x, labels).predict(x)
        _print_fit(strength, "scikit-learn", started, before, f"{100 * (ours == theirs).mean():.2f} %")


def _print_fit(strength: float, name: str, started: float, before: float, same: str) -> None:
    seconds, cpu = time.perf_counter() - started, time.process_time() - before
    print(f"| {strength:g} | {name} | {seconds:.1f} | {cpu:.1f} | {_peak_gb():.2f} | {same} |", flush=True)


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


if __name__ == "__main__":
    main()
