"""Non-blocking copies to the GPU, and buffers kept alive until it has read them."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from numpy.typing import NDArray

CPU = torch.device("cpu")

_MAX_HELD = 8  # batches


def to_device(values: NDArray[Any] | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy host values to the device; for CUDA through page-locked memory, since any other copy waits for all
    work queued before it.
    """
    tensor = values if isinstance(values, torch.Tensor) else torch.from_numpy(values)
    if device.type == "cpu" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class InUse:
    """Keeps tensors alive that queued kernels still read: DALI reuses its buffers as soon as nobody holds
    them, whatever is queued.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held: deque[tuple[Any, torch.Tensor]] = deque()

    def hold(self, tensor: torch.Tensor) -> None:
        """Hold `tensor` until all work queued so far is done; blocks once more than 8 are held."""
        if self._device.type == "cpu":
            return
        event: Any = torch.cuda.Event  # not typed by torch
        queued = event(blocking=True)  # leaves the core that would spin to the decoders
        queued.record(torch.cuda.current_stream(self._device))
        self._held.append((queued, tensor))
        if len(self._held) > _MAX_HELD:
            self._held[0][0].synchronize()
        while self._held and self._held[0][0].query():
            self._held.popleft()

    def release(self) -> None:
        """Wait for the queued work, then release every tensor."""
        if self._held:
            self._held[-1][0].synchronize()
        self._held.clear()
