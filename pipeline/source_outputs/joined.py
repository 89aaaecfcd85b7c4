"""Source outputs of a target's samples and of its pools, each from stores of its own, as those of one
dataset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from pipeline.data import Parts, Positions
from pipeline.runtime import to_device
from pipeline.source_outputs.outputs import SourceOutputs
from sskt.sources import Contract


class JoinedOutputs:
    """See `pipeline.source_outputs.SourceOutputs`. All parts have the same sources and views."""

    def __init__(self, parts: Sequence[SourceOutputs], sizes: Sequence[int]) -> None:
        """`sizes`: samples of each part, in the order of the joined dataset."""
        self._outputs, self._parts = parts, Parts(sizes)
        self.kind, self.sees_mixtures = parts[0].kind, parts[0].sees_mixtures

    @property
    def n_classes(self) -> Mapping[str, int]:
        """See `SourceOutputs.n_classes`."""
        return self._outputs[0].n_classes

    @property
    def weights_sha256(self) -> Mapping[str, str]:
        """See `SourceOutputs.weights_sha256`."""
        return self._outputs[0].weights_sha256

    @property
    def contracts(self) -> Mapping[str, Contract]:
        """See `SourceOutputs.contracts`."""
        return self._outputs[0].contracts

    @property
    def views(self) -> int | None:
        """See `SourceOutputs.views`."""
        return self._outputs[0].views

    def load(self, view: int, positions: Positions) -> None:
        """See `SourceOutputs.load`."""
        for placed in self._parts.place(positions):
            self._outputs[placed.part].load(view, placed.rows)

    def prepare(self, view: int, positions: Positions) -> None:
        """See `SourceOutputs.prepare`."""
        for placed in self._parts.place(positions):
            self._outputs[placed.part].prepare(view, placed.rows)

    def logits(self, positions: Positions, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `SourceOutputs.logits`. `pixels` are not looked at: every part reads what is stored."""
        logits: dict[str, torch.Tensor] = {}
        for placed in self._parts.place(positions):
            for name, rows in self._outputs[placed.part].logits(placed.rows, pixels).items():
                all_rows = logits.setdefault(name, rows.new_empty((len(positions), *rows.shape[1:])))
                all_rows[to_device(placed.which, rows.device)] = rows
        return logits

    def check(self) -> None:
        """See `SourceOutputs.check`."""
        for outputs in self._outputs:
            outputs.check()

    def finish(self) -> None:
        """See `SourceOutputs.finish`."""
        for outputs in self._outputs:
            outputs.finish()
