"""Normalise pixels as a network was trained: the field's usual means and deviations per channel, for pixels
in [0, 1].
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# the released 3D code subtracts ActivityNet's mean, as do the authors of its Kinetics checkpoints, and offers
# Kinetics' as an option
ACTIVITYNET_MEAN = (114.7748 / 255, 107.7354 / 255, 99.4750 / 255)
KINETICS_MEAN = (110.63666788 / 255, 103.16065604 / 255, 96.29023126 / 255)
RELEASED_MEAN = "activitynet"
CLIP_MEANS = {RELEASED_MEAN: ACTIVITYNET_MEAN, "kinetics": KINETICS_MEAN}
WHOLE_LEVELS = (1 / 255, 1 / 255, 1 / 255)  # its deviations: subtract the mean, scale nothing


def normalise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(pixels / 255 - mean) / std per channel: uint8 (N, 3, ...) to float32 of the same shape and device."""
    shape = (-1, *[1] * (pixels.ndim - 2))
    mean_c, std_c = (on_device(values, pixels.device).view(shape) for values in (mean, std))
    return (pixels.to(torch.float32) / 255 - mean_c) / std_c


def on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    """`values` as float32 (n,) on `device`; shared, so do not write to it."""
    if torch.compiler.is_compiling():  # the compiler caches constants itself
        return torch.tensor(values, dtype=torch.float32, device=device)
    return _cached(values, device)


@cache
def _cached(values: tuple[float, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(mode=False):  # so that autograd may use it
        return torch.tensor(values, dtype=torch.float32, device=device)
