"""MixUp (Zhang et al., 2018) and CutMix (Yun et al., 2019): two pictures of a batch become one.

Decided like the augmentation plan, before any pixel is read: share, window and partners are a pure function
of (seed, epoch, step). Mixtures are uint8 again, so that a source that looks at them sees the student's own
pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.runtime import to_device
from sskt.errors import RunError
from sskt.methods import Mixture

_PURPOSE = 1  # of the random stream (seed, epoch); the order of samples is 0


@dataclass(frozen=True, slots=True)
class Mixing:
    """`mixup` and `cutmix` are the a of Beta(a, a), 0 for off; with both on, each takes half of the steps."""

    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        if self.mixup < 0 or self.cutmix < 0:
            raise RunError(f"mixup is {self.mixup} and cutmix {self.cutmix}, expected 0 or more")

    def __bool__(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def __call__(
        self, pixels: torch.Tensor, *, seed: int, epoch: int, step: int
    ) -> tuple[torch.Tensor, Mixture]:
        """Mixtures of uint8 (N, 3, H, W) or (N, 3, D, H, W), and what they are mixtures of.

        Row n's partner is row n - 1: batches are shuffled already.
        """
        draws = np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, step, _PURPOSE, 0]))
        cut = draws.random() < 0.5 if self.mixup and self.cutmix else self.cutmix > 0
        a = self.cutmix if cut else self.mixup
        share = float(draws.beta(a, a))
        others = pixels.roll(1, dims=0)
        if cut:
            mixed, share = _with_window_of(others, pixels, share, draws)
        else:
            both = pixels.float() * share + others.float() * (1 - share)
            mixed = both.round().to(torch.uint8)
        partner = torch.arange(len(pixels), device=pixels.device).roll(1)
        return mixed, Mixture(partner, to_device(torch.tensor(share, dtype=torch.float32), pixels.device))


def _with_window_of(
    others: torch.Tensor, pixels: torch.Tensor, share: float, draws: np.random.Generator
) -> tuple[torch.Tensor, float]:
    """Pictures with one window of their partners, and the share that is left of them after its rounding."""
    height, width = pixels.shape[-2:]
    side = math.sqrt(1 - share)
    y, x = draws.random(2) * (height, width)
    top, bottom = (min(max(round(y + sign * side * height / 2), 0), height) for sign in (-1, 1))
    left, right = (min(max(round(x + sign * side * width / 2), 0), width) for sign in (-1, 1))
    mixed = pixels.clone()
    mixed[..., top:bottom, left:right] = others[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)
