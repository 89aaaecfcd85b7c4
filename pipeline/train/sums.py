"""Sums over an epoch's steps, and the figures computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from pipeline.runtime import World
from sskt.methods import Losses

Names = tuple[tuple[str, ...], tuple[str, ...]]  # of a method's auxiliary losses, and of what else it records


class StepFigures(NamedTuple):
    """`Losses` as plain numbers."""

    total: float
    primary: float
    auxiliary: list[float]
    recorded: list[float]
    correct: int


def to_host(losses: Sequence[Losses]) -> list[StepFigures]:
    """The losses of some steps, in as many copies from the device as one step would need."""
    if not losses:
        return []
    rows = [torch.cat([e.total[None], e.primary[None], e.auxiliary, e.recorded]) for e in losses]
    correct = torch.stack([each.correct for each in losses]).tolist()
    n = len(losses[0].auxiliary)
    return [
        StepFigures(total, primary, others[:n], others[n:], hits)
        for (total, primary, *others), hits in zip(torch.stack(rows).double().tolist(), correct, strict=True)
    ]


@dataclass(slots=True)
class Sums:
    """Sums over an epoch's samples on this rank, and the seconds spent waiting."""

    n: int = 0
    labelled: int = 0  # of these, samples that have a label
    correct: int = 0
    total: float = 0.0
    primary: float = 0.0
    auxiliary: dict[str, float] = field(default_factory=dict)
    recorded: dict[str, float] = field(default_factory=dict)
    data_s: float = 0.0  # for pixels
    label_s: float = 0.0  # for source logits
    wall_s: float = 0.0

    def add(self, step: StepFigures, n: int, labelled: int, names: Names) -> None:
        """Add a step of `n` samples, of which `labelled` have a label."""
        self.n += n
        self.labelled += labelled
        self.correct += step.correct
        self.total += step.total * n
        self.primary += step.primary * n
        auxiliary, recorded = names
        _add(self.auxiliary, auxiliary, step.auxiliary, n)
        _add(self.recorded, recorded, step.recorded, n)

    def means(self, names: Names, world: World, device: torch.device) -> dict[str, Any]:
        """The means over the samples of all ranks, and the seconds of this one."""
        auxiliary, recorded = names
        parts = [self.n, self.labelled, self.correct, self.total, self.primary]
        parts += [self.auxiliary[name] for name in auxiliary] + [self.recorded[name] for name in recorded]
        summed = world.all_reduce(torch.tensor(parts, dtype=torch.float64, device=device))
        n, labelled, correct, total, primary, *others = summed.tolist()
        called = [*(f"aux_loss/{name}" for name in auxiliary), *recorded]
        return {
            "train_loss": total / n,
            "primary_loss": primary / n,
            **{name: value / n for name, value in zip(called, others, strict=True)},
            "train_top1": 100 * correct / labelled,
            "epoch_s": self.wall_s,
            "label_s": self.label_s,
            "data_wait_s": self.data_s,
            "data_wait_share": self.data_s / self.wall_s,
            "images_s": n / self.wall_s,
        }


def _add(sums: dict[str, float], names: Sequence[str], means: Sequence[float], n: int) -> None:
    """Add the sums over `n` samples of which `means` are the means."""
    for name, mean in zip(names, means, strict=True):
        sums[name] = sums.get(name, 0.0) + mean * n
