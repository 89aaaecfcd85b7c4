"""What an epoch of graph distillation costs with its teachers' outputs in stores: the same run with those
outputs, and with the first batch's in every step, which are there without any lookup.

    python benchmarks/graph_epochs.py videofolder:three --size 64 --source run:A --source run:B \
        --source run:A@layer4:3 --source run:B@layer4:3

The stores must hold `--views` views of every source. The two take turns, `--rounds` times; an epoch's seconds
are the median over a run's epochs without the first, and the ratio is the median over rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

from torch import Tensor

from pipeline import api
from pipeline.api import Augmentation, Paths, choose_execution
from pipeline.commands.output import show_remarks
from pipeline.source_outputs.cached import CachedOutputs


def main() -> None:
    args = _arguments()
    ratios = []
    with tempfile.TemporaryDirectory() as folder, show_remarks():
        for i in range(args.rounds):
            took = {}
            for kind in ("cached", "constant")[:: -1 if i % 2 else 1]:
                with constant() if kind == "constant" else nullcontext():
                    took[kind] = epoch_s(args, Path(folder, f"{kind}-{i}"))
            ratios.append(took["cached"] / took["constant"])
            print(f"cached {took['cached']:.3f} s, constant {took['constant']:.3f} s, {ratios[-1]:.3f}")
    print(f"median over {len(ratios)} rounds: {statistics.median(ratios):.3f}")


@contextmanager
def constant() -> Iterator[None]:
    """The first batch's outputs in every step of a run; one view is read, for it."""
    load, logits = CachedOutputs.load, CachedOutputs.logits
    kept: dict[str, Tensor] = {}

    def load_once(outputs, view, positions):
        if not kept:
            load(outputs, view, positions)

    def repeat(outputs, positions, pixels):
        if not kept:
            kept.update(logits(outputs, positions, pixels))
        return {name: rows[: len(positions)] for name, rows in kept.items()}

    with (
        patch.object(CachedOutputs, "load", load_once),
        patch.object(CachedOutputs, "prepare", lambda *_: None),
        patch.object(CachedOutputs, "logits", repeat),
    ):
        yield


def epoch_s(args: argparse.Namespace, out: Path) -> float:
    """The median over a run's epochs without the first."""
    api.train(
        args.target,
        out=out,
        method="graph",
        graph_logits="em",
        graph_features="graph",
        sources=args.source,
        model=args.model,
        labels="cached",
        views=args.views,
        epochs=args.epochs,
        eval_every=args.epochs,
        val_share=0.0,
        batch_size=args.batch_size,
        lr=0.01,
        amp="fp32",
        augmentation=Augmentation(side_px=args.size),
        paths=Paths(args.data_dir, args.cache_dir),
        execution=choose_execution(),
    )
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return statistics.median(json.loads(line)["epoch_s"] for line in lines[1:])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target")
    parser.add_argument("--source", action="append", required=True)
    parser.add_argument("--model", default="alexnet-small")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--cache-dir", type=Path, default=Path("stores"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
