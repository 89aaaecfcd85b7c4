"""Reorders the columns of teachers whose classes come in another order than the target's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.source_outputs import SourceOutputs
from sskt.sources import Contract


class ReorderedOutputs:
    """See `pipeline.source_outputs.SourceOutputs`. Stores keep each source's own class order; here column c
    is the target's class c.
    """

    def __init__(self, outputs: SourceOutputs, columns: Mapping[str, NDArray[np.int64]]) -> None:
        """`columns`: for each source to be reordered, the column of every target class."""
        self._outputs = outputs
        self._columns = {name: torch.from_numpy(order) for name, order in columns.items()}
        self.kind, self.sees_mixtures = outputs.kind, outputs.sees_mixtures

    @property
    def n_classes(self) -> Mapping[str, int]:
        """See `SourceOutputs.n_classes`."""
        return self._outputs.n_classes

    @property
    def weights_sha256(self) -> Mapping[str, str]:
        """See `SourceOutputs.weights_sha256`."""
        return self._outputs.weights_sha256

    @property
    def contracts(self) -> Mapping[str, Contract]:
        """See `SourceOutputs.contracts`."""
        return self._outputs.contracts

    @property
    def views(self) -> int | None:
        """See `SourceOutputs.views`."""
        return self._outputs.views

    def load(self, view: int, positions: NDArray[np.int64]) -> None:
        """See `SourceOutputs.load`."""
        self._outputs.load(view, positions)

    def prepare(self, view: int, positions: NDArray[np.int64]) -> None:
        """See `SourceOutputs.prepare`."""
        self._outputs.prepare(view, positions)

    def logits(self, positions: NDArray[np.int64], pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `SourceOutputs.logits`."""
        logits = self._outputs.logits(positions, pixels)
        for name, order in self._columns.items():
            if order.device != logits[name].device:
                self._columns[name] = order = order.to(logits[name].device)
            logits[name] = logits[name].index_select(1, order)
        return logits

    def finish(self) -> None:
        """See `SourceOutputs.finish`."""
        self._outputs.finish()
