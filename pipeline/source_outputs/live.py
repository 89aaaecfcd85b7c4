"""Logits computed by the sources at every step: the cost that a store saves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from pipeline.data import Positions
from sskt.sources import Contract, InputMap, Source


class LiveSource(Protocol):
    """A source that can be run: a `FrozenSource`, or a `BatchStatisticsSource`, as in the released code."""

    source: Source
    input_map: InputMap

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (N, 3, H, W) to float16 (N, K); for clips, the frames that `input_map` picks."""


class LiveOutputs:
    """See `pipeline.source_outputs.SourceOutputs`. With `views` the plan repeats as it does for a store;
    without it, every epoch draws a new view.
    """

    kind = "live"
    sees_mixtures = True

    def __init__(
        self,
        sources: Mapping[str, LiveSource],
        *,
        views: int | None,
        contracts: Mapping[str, Contract] | None = None,
    ) -> None:
        self._sources, self.views, self.contracts = sources, views, contracts or {}
        self.n_classes = {name: live.source.spec.n_classes for name, live in sources.items()}
        self.weights_sha256 = {name: live.source.weights_sha256 for name, live in sources.items()}

    def load(self, view: int, positions: Positions) -> None:
        """See `SourceOutputs.load`. Nothing to do."""

    def prepare(self, view: int, positions: Positions) -> None:
        """See `SourceOutputs.prepare`. Nothing to do."""

    def logits(self, positions: Positions, pixels: torch.Tensor) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """See `SourceOutputs.logits`."""
        return {name: live.logits(live.input_map.pick(pixels)) for name, live in self._sources.items()}

    def finish(self) -> None:
        """See `SourceOutputs.finish`. Nothing to do."""
