"""Loaders alone, in one run: ours with each renderer, against a DataLoader with torchvision.

    python benchmarks/loaders.py --target cifar10 --data-dir data
    python benchmarks/loaders.py --target imagenet --split test --data-dir data --batch-size 64
    python benchmarks/loaders.py --target cifar10 --data-dir data --augment randaugment

Batches are drawn in shuffled order, end on the device, and are discarded. Rounds alternate between the
loaders; figures are medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from time import perf_counter

import torch
from plain import Images
from torchvision.transforms import v2

from pipeline.api import Augmentation
from pipeline.data.datasets import load_dataset, parse_target
from pipeline.data.loader import Loader, Sampler
from pipeline.data.render import open_renderer
from pipeline.runtime.distributed import World
from pipeline.runtime.execution import Execution
from sskt.errors import RunError

_POLICIES = {"randaugment": v2.RandAugment(), "trivialaugment": v2.TrivialAugmentWide()}


def main() -> None:
    args = _arguments()
    spec = parse_target(args.target)
    with tempfile.TemporaryDirectory() as scratch:
        dataset = load_dataset(
            spec, args.split, data_dir=args.data_dir, index_dir=Path(scratch), limit=args.limit
        )
    plan = Augmentation(side_px=args.size, augment=args.augment).training_plan(spec)
    device = torch.device(args.device)
    order = Sampler(len(dataset), args.batch_size, 0, World())
    epochs = {f"DataLoader, torchvision v2, {args.workers} workers": plain(args, dataset, plan.side_px)}
    on_host = ("dali-cpu",) if device.type == "cuda" else ()
    for backend in ("torch", "dali", *on_host, "resident"):
        try:
            renderer = open_renderer(
                dataset,
                plan,
                Execution(device, renderer=backend, threads=args.threads),
                batch_size=args.batch_size,
            )
        except RunError:  # no resident renderer for files
            continue
        epochs[f"ours, {renderer.name}"] = ours(Loader(dataset, renderer, order, device))
    for epoch in epochs.values():
        epoch(0)
    rates: dict[str, list[float]] = {name: [] for name in epochs}
    for i in range(args.rounds):
        for name, epoch in epochs.items():
            started = perf_counter()
            epoch(i + 1)
            if device.type == "cuda":
                torch.cuda.synchronize()
            rates[name].append(len(dataset) / (perf_counter() - started))
    print(f"{args.target}, {len(dataset)} images drawn at {plan.side_px} px, batch {args.batch_size}\n")
    print("| loader | images/s, median (least to most) | of the DataLoader |\n|---|---|---|")
    base = statistics.median(next(iter(rates.values())))
    for name, values in rates.items():
        middle = statistics.median(values)
        print(f"| {name} | {middle:,.0f} ({min(values):,.0f} to {max(values):,.0f}) | {middle / base:.2f} |")


def ours(loader: Loader):
    def epoch(number: int) -> None:
        for batch in loader.epoch(number, number):
            _ = batch.pixels

    return epoch


def plain(args: argparse.Namespace, dataset, side: int):
    if dataset.kind == "array":
        drawn = [v2.RandomCrop(side, padding=4), v2.RandomHorizontalFlip()]
    else:
        drawn = [v2.RandomResizedCrop(side, antialias=True), v2.RandomHorizontalFlip()]
    if args.augment is not None:
        drawn.append(_POLICIES[args.augment])
    loader = torch.utils.data.DataLoader(  # uint8 like ours, since the student normalises
        Images(dataset, v2.Compose([*drawn, v2.ToImage()])),
        batch_size=args.batch_size,
        shuffle=True,
        num_workers=args.workers,
        persistent_workers=True,
        pin_memory=args.device != "cpu",
        multiprocessing_context="spawn",
    )

    def epoch(_number: int) -> None:
        for pixels, _ in loader:
            _ = pixels.to(args.device, non_blocking=True)

    return epoch


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="cifar10")
    parser.add_argument("--split", default="train")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--limit", type=int)
    parser.add_argument("--size", type=int)
    parser.add_argument("--augment", choices=_POLICIES)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="of our renderers")
    parser.add_argument("--workers", type=int, default=2, help="of the DataLoader")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
