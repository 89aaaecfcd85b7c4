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
        bench(args, Path(scratch))


def bench(args: argparse.Namespace, scratch: Path) -> None:
    weights = {name: Path(path) for name, _, path in (pair.partition("=") for pair in args.weights)}
    paths = Paths(args.data_dir, scratch, weights)
    execution = choose_execution(
        device=args.device,
        amp=args.amp,
        renderer=args.renderer,
        threads=args.threads,
        batch_size=args.batch_size,
        compiled=True,
    )
    spec = parse_target(args.target)
    dataset = load_dataset(
        spec, args.split, data_dir=paths.data_dir, index_dir=scratch / "ix", limit=args.limit
    )
    augmentation = Augmentation()
    plan = augmentation.training_plan(spec)
    sources = []
    for name in args.source:
        source = open_source(name, weights=paths.weights.get(name), weights_dir=paths.weights_dir)
        sources.append((source, augmentation.input_map(spec, source.spec)))
    side = sources[0][1].side_px
    print(f"{args.target}, {len(dataset)} images, {args.views} views, sources at {side} px, {args.amp}")

    forwards = [
        choose_forward(source, input_map, execution, plan.side_px, len(dataset), args.views)
        for source, input_map in sources
    ]
    # whole forwards of every source
    n_batch = max(render_batch_size(forward.batch_size) for forward in forwards)
    with closing(open_renderer(dataset, plan, execution, batch_size=n_batch)) as renderer:
        pixels = next(
            iter(renderer.render(0, in_batches(np.arange(n_batch) % len(dataset), n_batch)))
        ).clone()
        if execution.device.type == "cuda":
            torch.cuda.synchronize()  # before DALI uses its buffer again
            pixels = pixels.to(execution.device)

    def bare() -> list[float]:
        """Images per second of every source on a resident batch."""
        rates = []
        for (source, input_map), forward in zip(sources, forwards, strict=True):
            frozen = open_frozen(source, input_map, forward, execution, plan.side_px)
            frozen.logits(pixels)
            n, started, took = 0, perf_counter(), 0.0
            while took < args.seconds:
                submitted = [frozen.submit(pixels) for _ in range(4)]
                for logits in submitted:
                    logits().cpu()
                n, took = n + 4 * len(pixels), perf_counter() - started
            rates.append(n / took)
        return rates

    ratios: dict[str, list[float]] = {}
    rates, passed = [], []
    before = bare()
    for number in range(1, args.rounds + 1):
        took = {}
        for n in range(1, len(sources) + 1):  # this round's views, into stores of n sources
            job = Job(args.target, dataset, sources[:n], plan, args.views * number)
            folder = scratch / f"stores{n}"
            reports = fill_stores(job, cache_dir=folder, execution=execution, world=World())
            took[n] = reports[0].wall_s
            writing = sum(report.write_s for report in reports) / reports[0].wall_s
            ratios.setdefault(f"writing, share of the time, {n} source(s)", []).append(writing)
        after = bare()
        rates.append([statistics.mean(pair) for pair in zip(before, after, strict=True)])
        before = after
        each = [len(dataset) * args.views / rate for rate in rates[-1]]
        for n, seconds in took.items():
            ratios.setdefault(f"stage one / bare, {n} source(s)", []).append(sum(each[:n]) / seconds)
        if len(sources) > 1:  # one pass for all sources against the first pass plus the other bare forwards
            alone = took[1] + sum(each[1:])
            ratios.setdefault("all sources / (first pass + forwards)", []).append(took[len(sources)] / alone)
        passed.append(len(dataset) * args.views / took[1])
        print(f"round {number}: bare {rates[-1][0]:.1f}, stage one {passed[-1]:.1f} images/s", flush=True)
    for i, (source, _) in enumerate(sources):
        print(f"{'bare ' + source.spec.name:<40}{_spread([rate[i] for rate in rates], '.1f')} images/s")
    print(f"{'stage one, 1 source':<40}{_spread(passed, '.1f')} images/s")
    for name, values in ratios.items():
        print(f"{name:<40}{_spread(values, '.4f' if 'writing' in name else '.3f')}")
    if dataset.kind == "files":
        plain = partial(plain_loop, args, dataset, sources[0][0], side, execution)
        loops = {"plain loop, fp32": plain()}
        if execution.device.type == "cuda":
            loops[f"plain loop, {execution.precision}"] = plain(fast=True)
        for name, rate in loops.items():
            print(f"{name + ', first source':<40}{rate:>10.1f} images/s")
            print(f"{'stage one / ' + name:<40}{passed[-1] / rate:>10.2f}")


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
        _Images(dataset, rows, transform),
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
        for pixels in loader:
            started = started or perf_counter()  # once the workers are running
            x = pixels.to(device, non_blocking=True).contiguous(memory_format=layout)
            logits.append(module(x).to(torch.float16).cpu())
    return len(rows) / (perf_counter() - started)


class _Images(torch.utils.data.Dataset):
    def __init__(self, dataset, rows, transform) -> None:
        self._dataset, self._rows, self._transform = dataset, rows, transform

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> torch.Tensor:
        from PIL import Image

        with Image.open(self._dataset.access.path_of(int(self._rows[i]))) as image:
            return self._transform(image.convert("RGB"))


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
