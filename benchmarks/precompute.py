"""Stage one against its limits, in one run: the bare forwards, a plain loop, one source or two, writing.

    python benchmarks/precompute.py --target imagenet --weights imagenet=resnet50.safetensors \
        --source imagenet --source program:squeezenet.pt2 --amp bf16

The target's images are drawn by its training plan, and every round adds views to the stores. "bare" is the
source, as stage one runs it, on one batch in memory; it is measured before and after each round, since a
shared machine drifts, and ratios are medians over the rounds. The plain loops are what one would write
without this package: a DataLoader, Pillow, torchvision's transforms, an eager forward; once in fp32 and, on
CUDA, once in channels last under autocast in the precision of ours.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from plain import Images
from torchvision.transforms import v2

from pipeline.commands.output import show_remarks
from pipeline.data.augmentation import Augmentation
from pipeline.data.datasets import load_dataset, parse_target
from pipeline.data.render import in_batches, open_renderer
from pipeline.precompute.run import fill_stores
from pipeline.runtime.distributed import World
from pipeline.runtime.execution import Execution, autocast, choose_execution, render_batch_size
from pipeline.runtime.paths import Paths
from pipeline.stores.job import Job
from pipeline.stores.sources import choose_forward, open_frozen
from sskt.normalise import IMAGENET_MEAN, IMAGENET_STD
from sskt.sources.registry import open_source


def main() -> None:
    args = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        Bench(args, Path(scratch)).run()


class Bench:
    """A dataset, its plan, the sources, and one batch of images on the device."""

    def __init__(self, args: argparse.Namespace, scratch: Path) -> None:
        self.args, self.scratch = args, scratch
        weights = {name: Path(path) for name, _, path in (pair.partition("=") for pair in args.weights)}
        paths = Paths(args.data_dir, scratch, weights)
        self.execution = choose_execution(
            device=args.device,
            amp=args.amp,
            renderer=args.renderer,
            threads=args.threads,
            batch_size=args.batch_size,
            compiled=True,
        )
        spec = parse_target(args.target)
        self.dataset = load_dataset(
            spec, args.split, data_dir=paths.data_dir, index_dir=scratch / "ix", limit=args.limit
        )
        augmentation = Augmentation()
        self.plan = augmentation.training_plan(spec)
        self.sources = []
        for name in args.source:
            source = open_source(name, weights=paths.weights.get(name), weights_dir=paths.weights_dir)
            self.sources.append((source, augmentation.input_map(spec, source.spec)))
        self.forwards = [
            choose_forward(
                source, input_map, self.execution, self.plan.side_px, len(self.dataset), args.views
            )
            for source, input_map in self.sources
        ]
        self.pixels = self._one_batch()
        self.ratios: dict[str, list[float]] = {}

    def run(self) -> None:
        """Measure bare forwards and stage one in turns, then the plain loops, and print it all."""
        args, sources = self.args, self.sources
        n_images, side = len(self.dataset) * args.views, sources[0][1].side_px
        print(
            f"{args.target}, {len(self.dataset)} images, {args.views} views, sources at {side} px, {args.amp}"
        )
        rates, passed = [], []
        before = self.bare()
        for number in range(1, args.rounds + 1):
            took = self.stage_one(number)
            after = self.bare()
            rates.append([statistics.mean(pair) for pair in zip(before, after, strict=True)])
            before = after
            self.compare(took, [n_images / rate for rate in rates[-1]])
            passed.append(n_images / took[0])
            print(f"round {number}: bare {rates[-1][0]:.1f}, stage one {passed[-1]:.1f} images/s", flush=True)
        for i, (source, _) in enumerate(sources):
            print(f"{'bare ' + source.spec.name:<40}{_spread([rate[i] for rate in rates], '.1f')} images/s")
        print(f"{'stage one, 1 source':<40}{_spread(passed, '.1f')} images/s")
        for name, values in self.ratios.items():
            print(f"{name:<40}{_spread(values, '.4f' if 'writing' in name else '.3f')}")
        if self.dataset.kind == "files":
            self.compare_with_plain_loops(passed[-1], side)

    def bare(self) -> list[float]:
        """Images per second of every source on a resident batch."""
        rates = []
        for (source, input_map), forward in zip(self.sources, self.forwards, strict=True):
            frozen = open_frozen(source, input_map, forward, self.execution, self.plan.side_px)
            frozen.logits(self.pixels)
            n, started, took = 0, perf_counter(), 0.0
            while took < self.args.seconds:
                submitted = [frozen.submit(self.pixels) for _ in range(4)]
                for logits in submitted:
                    logits().cpu()
                n, took = n + 4 * len(self.pixels), perf_counter() - started
            rates.append(n / took)
        return rates

    def stage_one(self, number: int) -> list[float]:
        """Seconds for the views of round `number`, into stores of the first source, of the first two, ..."""
        took = []
        for n in range(1, len(self.sources) + 1):
            job = Job(self.args.target, self.dataset, self.sources[:n], self.plan, self.args.views * number)
            folder = self.scratch / f"stores{n}"
            reports = fill_stores(job, cache_dir=folder, execution=self.execution, world=World())
            took.append(reports[0].wall_s)
            writing = sum(report.write_s for report in reports) / reports[0].wall_s
            self.ratios.setdefault(f"writing, share of the time, {n} source(s)", []).append(writing)
        return took

    def compare(self, took: list[float], bare: list[float]) -> None:
        """Note a round's ratios, from the seconds of stage one and those of each source's bare forwards."""
        for n, seconds in enumerate(took, start=1):
            self.ratios.setdefault(f"stage one / bare, {n} source(s)", []).append(sum(bare[:n]) / seconds)
        if len(took) > 1:  # one pass for all sources against the first pass plus the other bare forwards
            alone = took[0] + sum(bare[1:])
            self.ratios.setdefault("all sources / (first pass + forwards)", []).append(took[-1] / alone)

    def compare_with_plain_loops(self, rate_of_ours: float, side: int) -> None:
        """Measure the plain loops with the first source, and print them."""
        plain = partial(plain_loop, self.args, self.dataset, self.sources[0][0], side, self.execution)
        loops = {"plain loop, fp32": plain()}
        if self.execution.device.type == "cuda":
            loops[f"plain loop, {self.execution.precision}"] = plain(fast=True)
        for name, rate in loops.items():
            print(f"{name + ', first source':<40}{rate:>10.1f} images/s")
            print(f"{'stage one / ' + name:<40}{rate_of_ours / rate:>10.2f}")

    def _one_batch(self) -> torch.Tensor:
        """Images for whole forwards of every source."""
        n = max(render_batch_size(forward.batch_size) for forward in self.forwards)
        with closing(open_renderer(self.dataset, self.plan, self.execution, batch_size=n)) as renderer:
            batches = in_batches(np.arange(n) % len(self.dataset), n)
            pixels = next(iter(renderer.render(0, batches))).clone()
            if self.execution.device.type == "cuda":
                torch.cuda.synchronize()  # before DALI uses its buffer again
                pixels = pixels.to(self.execution.device)
        return pixels


def _spread(values: Sequence[float], form: str) -> str:
    """Median, minimum and maximum, as text."""
    return f"{statistics.median(values):>10{form}} ({min(values):{form}} to {max(values):{form}})"


def plain_loop(args, dataset, source, side: int, execution: Execution, *, fast: bool = False) -> float:
    """Images per second of the obvious loop, without this package; `fast`: channels last under autocast."""
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(side, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    rows = np.random.default_rng(0).permutation(len(dataset))[: args.plain]
    loader = torch.utils.data.DataLoader(
        Images(dataset.take(rows), transform),
        batch_size=args.plain_batch_size,
        num_workers=args.workers,
        pin_memory=execution.device.type == "cuda",
        multiprocessing_context="spawn",
    )
    layout = torch.channels_last if fast else torch.contiguous_format
    device = execution.device
    module = source.module.to(device, memory_format=layout)
    precision = autocast(device, execution.precision if fast else "fp32")
    logits, started = [], None
    with torch.inference_mode(), precision:
        for pixels, _ in loader:
            started = started or perf_counter()  # once the workers are running
            x = pixels.to(device, non_blocking=True).contiguous(memory_format=layout)
            logits.append(module(x).to(torch.float16).cpu())
    return len(rows) / (perf_counter() - started)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="cifar10")
    parser.add_argument("--split", default="train")
    parser.add_argument("--source", action="append", required=True)
    parser.add_argument("--weights", action="append", default=[])
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--limit", type=int)
    parser.add_argument("--views", type=int, default=2, help="views per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--amp", default="auto")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--seconds", type=float, default=6.0, help="duration of each bare measurement")
    parser.add_argument("--plain", type=int, default=320, help="images in the plain loop")
    parser.add_argument("--plain-batch-size", type=int, default=32)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--renderer", default="auto")
    parser.add_argument("--threads", type=int, default=2, help="that decode")
    parser.add_argument("--workers", type=int, default=2, help="of the plain loop's DataLoader")
    return parser.parse_args()


if __name__ == "__main__":
    with show_remarks():
        main()
