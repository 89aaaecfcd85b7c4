"""Copies to a device that make nobody wait, memory that is held until the device has read it, and memory that
a CPU uses again.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from numpy.typing import NDArray

_MOST_HELD = 8  # batches


def to_device(values: NDArray[Any] | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Values of the host on the device; on CUDA through page-locked memory, since any other copy waits for
    all work that was queued before it.
    """
    tensor = values if isinstance(values, torch.Tensor) else torch.from_numpy(values)
    if device.type == "cpu" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class InUse:
    """Tensors that kernels in the device's queue still read. DALI writes into its buffers again as soon as
    nobody holds them, whatever is queued.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held: deque[tuple[Any, torch.Tensor]] = deque()

    def hold(self, tensor: torch.Tensor) -> None:
        """Hold it until all that is queued by now is done; waits where more than a few are held."""
        if self._device.type != "cuda":
            return
        event: Any = torch.cuda.Event  # not typed by torch
        queued = event()
        queued.record(torch.cuda.current_stream(self._device))
        self._held.append((queued, tensor))
        if len(self._held) > _MOST_HELD:
            self._held[0][0].synchronize()
        while self._held and self._held[0][0].query():
            self._held.popleft()

    def release(self) -> None:
        """Wait for all that was queued, and let go."""
        if self._held:
            self._held[-1][0].synchronize()
        self._held.clear()
