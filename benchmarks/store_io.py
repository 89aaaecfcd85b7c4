"""Reading and writing a store against plain files of the same bytes, in one run.

    python benchmarks/store_io.py
    python benchmarks/store_io.py --samples 4000 --classes 9216 --kind representations    # maps, 256 x 6 x 6

A whole view against numpy.fromfile (both warm), a unit against one write and one fsync, and bytes per number.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np

from cache.manifest import Manifest
from cache.row_format import LOGITS, REPRESENTATIONS
from cache.store import Store, Unit


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=12_500)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--kind", choices=(LOGITS, REPRESENTATIONS), default=LOGITS)
    parser.add_argument("--repeats", type=int, default=21)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        bench(args, Path(folder))


def bench(args: argparse.Namespace, folder: Path) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 5, (args.samples, args.classes)).astype(np.float16)
    store = Store.create(
        folder / "s.zarr",
        Manifest({"source": {}}, {}),
        ids=np.arange(args.samples),
        contents=rng.integers(0, 256, (args.samples, 16), np.uint8),  # random, since Zarr omits zeros
        n_classes=args.classes,
        views=args.repeats,
        kind=args.kind,
    )
    ours, plain = [], []
    for view in range(args.repeats):
        rows = logits[store.rows_of(0)]
        ours.append(_time(lambda rows=rows, view=view: store.write_unit(Unit(view, 0), rows)))
        plain.append(_time(lambda rows=rows: _write(folder / "plain", rows)))
    print(
        f"unit of {rows.nbytes / 1e6:.1f} MB: {_ms(ours)}; plain write and fsync: {_ms(plain)}; "
        f"ratio of medians {statistics.median(plain) / statistics.median(ours):.2f}"
    )
    for unit in store.pending(min(10, args.repeats)):
        store.write_unit(unit, logits[store.rows_of(unit.block)])
    logits.tofile(folder / "view")
    ours, plain = [], []
    for _ in range(args.repeats):
        ours.append(_time(lambda: store.view(0)))
        plain.append(_time(lambda: np.fromfile(folder / "view", np.float16)))
    print(
        f"view of {logits.nbytes / 1e6:.1f} MB: {_ms(ours)}; numpy.fromfile: {_ms(plain)}; "
        f"ratio of medians {statistics.median(plain) / statistics.median(ours):.2f}"
    )
    for views in sorted({1, min(10, args.repeats)}, reverse=True):
        store.trim(views)
        n_bytes = store.nbytes / logits.size / views
        print(f"{n_bytes:.4f} bytes per class with everything, {views} view(s) of {args.classes} classes")


def _write(path: Path, rows: np.ndarray) -> None:
    with path.open("wb") as file:
        file.write(rows.data)
        file.flush()
        os.fsync(file.fileno())


def _time(act) -> float:
    started = perf_counter()
    act()
    return perf_counter() - started


def _ms(seconds: list[float]) -> str:
    low, middle, high = (1000 * q for q in np.quantile(seconds, (0.1, 0.5, 0.9)))
    return f"{middle:.1f} ms ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    main()
