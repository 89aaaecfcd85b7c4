"""The interface of every renderer."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from pipeline.data.datasets import Positions


class Renderer(Protocol):
    """Draws images of one dataset by one plan."""

    name: str  # "dali-cpu", "resident-gpu" and so on: recorded in every store

    def render(self, view: int, batches: Sequence[Positions]) -> Generator[torch.Tensor, None, None]:
        """Yield one uint8 tensor (n, 3, side, side), or (n, 3, F, side, side), per array of n positions; n is
        at most `batch_size`.
        """

    def cache_decoded(self) -> AbstractContextManager[None]:
        """Within this context each file is decoded once, and its whole image kept for later renders."""

    def close(self) -> None:
        """Free threads and device memory."""
