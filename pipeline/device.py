"""Copies to a device that make nobody wait, memory that is held until the device has read it, and memory that
a CPU uses again.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections import deque
from typing import Any

import torch
from numpy.typing import NDArray

_MOST_HELD = 8  # batches
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's mallopt(3)
_LARGEST_ON_HEAP, _KEPT_FREE = 32 << 20, (1 << 31) - 1  # bytes: the largest values that it takes


def moved(values: NDArray[Any] | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Values of the host on the device; on CUDA through page-locked memory, since any other copy waits for
    all work that was queued before it.
    """
    tensor = values if isinstance(values, torch.Tensor) else torch.from_numpy(values)
    if device.type == "cpu" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def reuse_freed_memory() -> None:
    """Have this process keep the memory that tensors give back, up to 2 GB, for the next ones.

    Every step on a CPU takes and frees the same hundreds of megabytes. glibc returns them to the kernel,
    which clears each page again: up to a sixth of a step of ResNet20 (benchmarks/RESULTS.md). Does nothing
    where there is no glibc, or the user has set its allocator by MALLOC_ variables or GLIBC_TUNABLES.
    """
    chosen = "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ)
    if chosen or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_ON_HEAP)
        mallopt(_TRIM_THRESHOLD, _KEPT_FREE)


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
