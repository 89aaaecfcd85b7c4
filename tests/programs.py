"""Tiny networks for tests: sources, saved with torch.export, and a student."""

from pathlib import Path

import torch
from torch import nn

from sskt.students import WrappedBackbone


class Tiny(nn.Module):
    """Average colour to seven logits; `bad` makes them NaN for bright pictures."""

    def __init__(self, seed: int = 0, bad: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 7)
        self.bad = bad
        with torch.no_grad():
            weights = torch.Generator().manual_seed(seed)
            self.linear.weight.copy_(torch.randn(7, 12, generator=weights))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        logits = self.linear(pooled)
        return torch.where(pooled.mean(dim=1, keepdim=True) > 2.0, torch.nan, logits) if self.bad else logits


class Pair(Tiny):
    """Two outputs, neither of which is called logits."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        logits = super().forward(x)
        return logits, logits * 2


def small_student() -> WrappedBackbone:
    """The same weights each time, for what holds of any network: the named ones take longer to train, to
    compile and to write.
    """
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3)
    return WrappedBackbone(nn.Sequential(*layers), side_px=16, blocks=("0", "3"), transfer_width=16)


def save_program(path: Path, network: nn.Module | None = None, *, fixed_batch: bool = False) -> Path:
    """Export a network for pictures of 8 to 512 px; by default `Tiny`."""
    size = torch.export.Dim("size", min=8, max=512)
    batch = None if fixed_batch else torch.export.Dim("batch", min=1, max=4096)
    shapes = ({0: batch, 2: size, 3: size},) if batch else ({2: size, 3: size},)
    program = torch.export.export(
        (network or Tiny()).eval(), (torch.zeros(2, 3, 32, 32),), dynamic_shapes=shapes
    )
    torch.export.save(program, path)
    return path
