"""Which optimiser teaches AlexNet at graph distillation's printed rate: the first steps of training from
scratch, on centre frames of a target's real clips.

    python benchmarks/graph_optimizers.py ucf101 --data-dir DATA --cache-dir STORES

The paper prints "Adam optimizer with momentum 0.9" and a rate of 0.01. Beside it: Adam at 1e-4, and SGD with
that momentum and rate, which is the recipe's. A batch is drawn from so many views of the training clips that
it can be filled. Dead: hidden units that answer 0 to every image of the last batch.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.api import Augmentation, Paths, choose_execution, open_dataset
from pipeline.data import centre_frame, open_renderer, parse_target
from sskt.normalise import normalise
from sskt.optimiser import build_optimizer
from sskt.recipes import recipe_for
from sskt.students import Student, build_backbone

TRIED = (("adam", 0.01), ("adam", 1e-4), ("sgd", 0.01))  # the first as printed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", help="ucf101, hmdb51 or videofolder:PATH, prepared")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--cache-dir", type=Path, default=Path("stores"))
    parser.add_argument("--model", default="alexnet", choices=("alexnet", "alexnet-small"))
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    execution = choose_execution(device=args.device)
    dataset = open_dataset(args.target, "train", paths=Paths(args.data_dir, args.cache_dir))
    plan = Augmentation(side_px=args.size).training_plan(parse_target(args.target))
    n_views = max(2, math.ceil(args.batch_size / len(dataset)))
    positions = np.arange(len(dataset))
    with closing(open_renderer(dataset, centre_frame(plan), execution, batch_size=64)) as renderer:
        views = [
            torch.cat([*renderer.render(v, np.array_split(positions, -(-len(dataset) // 64)))])
            for v in range(n_views)
        ]
    pixels = torch.cat(views).cpu()[:, :, 0]
    labels = torch.from_numpy(np.tile(dataset.labels, n_views))
    n_shown = len(np.unique(dataset.labels))
    print(
        f"{args.target}: {len(dataset):,} clips of {n_shown} classes, {n_views} views, {args.model} of "
        f"{len(dataset.classes)} classes at {args.size} px, batch {args.batch_size}; ln {n_shown} = "
        f"{math.log(n_shown):.2f}\n"
    )
    print("| optimiser | rate | seed | loss, step 1 | 10 | mean of last 10 | top-1, last 10 | dead in fc7 |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, lr in TRIED:
        for seed in range(args.seeds):
            losses, right, dead = train(
                kind, lr, seed, pixels, labels, len(dataset.classes), args, execution.device
            )
            print(
                f"| {kind} | {lr:g} | {seed} | {losses[0]:.3g} | {losses[min(9, len(losses) - 1)]:.3g} | "
                f"{np.mean(losses[-10:]):.3g} | {100 * np.mean(right[-10:]):.1f} % | {100 * dead:.1f} % |",
                flush=True,
            )


def train(
    kind: str,
    lr: float,
    seed: int,
    pixels: Tensor,
    labels: Tensor,
    n_classes: int,
    args: argparse.Namespace,
    device: torch.device,
) -> tuple[list[float], list[float], float]:
    """Losses and accuracies of each step, and the share of dead units of the last hidden layer."""
    recipe = recipe_for("ucf101", "graph")
    torch.manual_seed(seed)
    student = Student(build_backbone(args.model), n_classes, {}, transfer_module=False).to(device).train()
    optimizer = build_optimizer(
        kind,
        [{"params": list(student.parameters())}],
        lr=lr,
        momentum=recipe.momentum,
        dampening=0.0,
        weight_decay=recipe.weight_decay,
        nesterov=False,
        decay_norms=True,
        fused=False,
    )
    losses, right = [], []
    pooled = torch.zeros(1, 1)
    for rows in batches(len(labels), args.batch_size, args.steps, seed):
        x = normalise(pixels[rows].to(device), student.backbone.mean, student.backbone.std)
        y = labels[rows].to(device)
        pooled = student.backbone(x).pooled
        logits = student.head(pooled)
        loss = F.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        right.append(float((logits.argmax(dim=1) == y).float().mean()))
    return losses, right, float((pooled == 0).all(dim=0).float().mean())


def batches(n: int, batch_size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Rows of each step: every row once before any twice."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(n, generator=generator)])
        yield order[:batch_size]
        order = order[batch_size:]


if __name__ == "__main__":
    main()
