"""Reorders the columns of teachers whose classes come in another order than the target's."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pipeline.data import Positions
from pipeline.source_outputs.outputs import SourceOutputs
from pipeline.source_outputs.wrapped import WrappedOutputs


class ReorderedOutputs(WrappedOutputs):
    """See `pipeline.source_outputs.SourceOutputs`. Stores keep each source's own class order; here column c
    is the target's class c.
    """

    def __init__(self, outputs: SourceOutputs, columns: Mapping[str, Positions]) -> None:
        """`columns`: for each source to be reordered, the column of every target class."""
        super().__init__(outputs)
        self._columns = {name: torch.from_numpy(order) for name, order in columns.items()}

    def logits(self, positions: Positions, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `SourceOutputs.logits`."""
        logits = self._outputs.logits(positions, pixels)
        for name, order in self._columns.items():
            if order.device != logits[name].device:
                self._columns[name] = order = order.to(logits[name].device)
            logits[name] = logits[name].index_select(1, order)
        return logits
