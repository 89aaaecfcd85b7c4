"""Source outputs of a target's samples and of its pools, each from stores of its own, as those of one
dataset.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.data import Parts, Positions
from pipeline.runtime import to_device
from pipeline.source_outputs.outputs import SourceOutputs
from pipeline.source_outputs.wrapped import WrappedOutputs


class JoinedOutputs(WrappedOutputs):
    """See `pipeline.source_outputs.SourceOutputs`. All parts have the same sources and views, so what is said
    of them is what the first one says.
    """

    def __init__(self, parts: Sequence[SourceOutputs], sizes: Sequence[int]) -> None:
        """`sizes`: samples of each part, in the order of the joined dataset."""
        super().__init__(parts[0])
        self._each, self._parts = parts, Parts(sizes)

    def load(self, view: int, positions: Positions) -> None:
        """See `SourceOutputs.load`."""
        for placed in self._parts.place(positions):
            self._each[placed.part].load(view, placed.rows)

    def prepare(self, view: int, positions: Positions) -> None:
        """See `SourceOutputs.prepare`."""
        for placed in self._parts.place(positions):
            self._each[placed.part].prepare(view, placed.rows)

    def logits(self, positions: Positions, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `SourceOutputs.logits`. `pixels` are not looked at: every part reads what is stored."""
        logits: dict[str, torch.Tensor] = {}
        for placed in self._parts.place(positions):
            for name, rows in self._each[placed.part].logits(placed.rows, pixels).items():
                all_rows = logits.setdefault(name, rows.new_empty((len(positions), *rows.shape[1:])))
                all_rows[to_device(placed.which, rows.device)] = rows
        return logits

    def check(self) -> None:
        """See `SourceOutputs.check`."""
        for outputs in self._each:
            outputs.check()

    def finish(self) -> None:
        """See `SourceOutputs.finish`."""
        for outputs in self._each:
            outputs.finish()
