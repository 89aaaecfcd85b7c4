"""Copies to a device that make nobody wait."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray


def moved(values: NDArray[Any] | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Values of the host on the device; on CUDA through page-locked memory, since any other copy waits for
    all work that was queued before it.
    """
    tensor = values if isinstance(values, torch.Tensor) else torch.from_numpy(values)
    if device.type == "cpu" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
