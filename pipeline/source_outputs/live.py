"""Logits asked of the sources in every step: the price that a store saves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from sskt.sources import Contract, InputMap, Source


class Teacher(Protocol):
    """A source that answers: `sskt.sources.frozen.FrozenSource`, or the released code's way of asking it."""

    source: Source
    input_map: InputMap

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (N, 3, H, W) to float16 (N, K); of clips, the frames that `input_map` picks."""


class LiveOutputs:
    """See `pipeline.source_outputs.SourceOutputs`. With `views` the plan repeats as it does for a store;
    without, every epoch draws a view of its own.
    """

    kind = "live"
    sees_mixtures = True

    def __init__(
        self,
        sources: Mapping[str, Teacher],
        *,
        views: int | None,
        contracts: Mapping[str, Contract] | None = None,
    ) -> None:
        self._sources, self.views, self.contracts = sources, views, contracts or {}
        self.n_classes = {name: frozen.source.spec.n_classes for name, frozen in sources.items()}
        self.weights_sha256 = {name: frozen.source.weights_sha256 for name, frozen in sources.items()}

    def load(self, view: int, positions: NDArray[np.int64]) -> None:
        """See `SourceOutputs.load`. Nothing to do."""

    def prepare(self, view: int, positions: NDArray[np.int64]) -> None:
        """See `SourceOutputs.prepare`. Nothing to do."""

    def logits(self, positions: NDArray[np.int64], pixels: torch.Tensor) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """See `SourceOutputs.logits`."""
        return {
            name: frozen.logits(frozen.input_map.picked(pixels)) for name, frozen in self._sources.items()
        }

    def finish(self) -> None:
        """See `SourceOutputs.finish`. Nothing to do."""
