"""A few numbers on a device, put there once: any copy from the host's ordinary memory would make it wait."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    """`values` as float32 (n,) on `device`; not to be written to."""
    if torch.compiler.is_compiling():  # the compiler keeps constants itself
        return torch.tensor(values, dtype=torch.float32, device=device)
    return _kept(values, device)


@cache
def _kept(values: tuple[float, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(mode=False):  # so that it may enter any graph
        return torch.tensor(values, dtype=torch.float32, device=device)
