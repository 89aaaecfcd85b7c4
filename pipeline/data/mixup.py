"""MixUp (Zhang et al., 2018) and CutMix (Yun et al., 2019): combine pairs of images in a batch.

Like the augmentation plan, share, window and partners are decided before any pixel is read, as a pure
function of (seed, epoch, step). Mixtures are rounded to uint8, so that a live source sees exactly the
student's pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.runtime import to_device
from sskt.errors import RunError
from sskt.methods import Mixture

_PURPOSE = 1  # within the random stream of (seed, epoch); the sample order is 0


@dataclass(frozen=True, slots=True)
class Mixing:
    """`mixup` and `cutmix` are the a of Beta(a, a), 0 for off; if both are on, each takes half the steps."""

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
        """Mix uint8 (N, 3, H, W) or (N, 3, D, H, W); returns the mixtures, and their partners and shares.

        Row n's partner is row n - 1, since batches are already shuffled.
        """
        draws = np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, step, _PURPOSE, 0]))
        cut = draws.random() < 0.5 if self.mixup and self.cutmix else self.cutmix > 0
        a = self.cutmix if cut else self.mixup
        share = float(draws.beta(a, a))
        others = pixels.roll(1, dims=0)
        if cut:
            mixed, share = _paste_window(others, pixels, share, draws)
        else:
            blend = pixels.float() * share + others.float() * (1 - share)
            mixed = blend.round().to(torch.uint8)
        partner = torch.arange(len(pixels), device=pixels.device).roll(1)
        return mixed, Mixture(partner, to_device(torch.tensor(share, dtype=torch.float32), pixels.device))


def _paste_window(
    others: torch.Tensor, pixels: torch.Tensor, share: float, draws: np.random.Generator
) -> tuple[torch.Tensor, float]:
    """Paste a window of `others` into `pixels`; returns that, and the share of `pixels` after rounding."""
    height, width = pixels.shape[-2:]
    side = math.sqrt(1 - share)
    y, x = draws.random(2) * (height, width)
    top, bottom = (min(max(round(y + sign * side * height / 2), 0), height) for sign in (-1, 1))
    left, right = (min(max(round(x + sign * side * width / 2), 0), width) for sign in (-1, 1))
    mixed = pixels.clone()
    mixed[..., top:bottom, left:right] = others[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)
