"""What every renderer does."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

Positions = NDArray[np.int64]  # (N,) of samples in a dataset


class Renderer(Protocol):
    """Draws images of one dataset by one plan."""

    name: str  # "dali-cpu", "resident-gpu" and so on: recorded with every store

    def render(self, view: int, batches: Sequence[Positions]) -> Generator[torch.Tensor, None, None]:
        """One uint8 tensor (n, 3, side, side), or (n, 3, F, side, side), for each array of n positions; at
        most `batch_size` of them.
        """

    def keeping(self) -> AbstractContextManager[None]:
        """Within it, a file is decoded once for all renders, and its whole image kept in memory."""

    def close(self) -> None:
        """Free threads and device memory."""
