"""Where a batch's source outputs come from: a store, the live sources, or both in turn. The trainer cannot
tell which (docs/method.md, promise 6).

All give a dict by source name, of one output of each source (`SourceSpec.output`, the logits of all sources
today): a float16 tensor (N, K_m) on the training device, for the very pixels that the student sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from sskt.sources import Contract

__all__ = ["SourceOutputs"]


class SourceOutputs(Protocol):
    """One output of each source, by sample."""

    kind: str  # "cached", "live" or "write-through"
    sees_mixtures: bool  # whether mixed pictures are shown to the sources, or the logits of both are mixed

    @property
    def n_classes(self) -> Mapping[str, int]:
        """Classes per source."""

    @property
    def weights_sha256(self) -> Mapping[str, str]:
        """Of each source, what its logits come from."""

    @property
    def contracts(self) -> Mapping[str, Contract]:
        """Of each source, what is declared of it by the user or its file."""

    @property
    def views(self) -> int | None:
        """How many views take turns; None: every epoch draws its own."""

    def load(self, view: int, positions: NDArray[np.int64]) -> None:
        """Have the rows `positions`, sorted, of one view ready; called before the first batch of an epoch."""

    def prepare(self, view: int, positions: NDArray[np.int64]) -> None:
        """Start to make ready what the next `load` will ask for, while this view is in use."""

    def logits(self, positions: NDArray[np.int64], pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Each source's logits (N, K_m), float16, for the index rows `positions` whose pixels are uint8 (N,
        3, H, W).
        """

    def finish(self) -> None:
        """The epoch is over: every row that was asked for has been used."""
