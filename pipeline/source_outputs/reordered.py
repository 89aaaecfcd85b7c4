"""Labels of teachers whose classes come in another order than the target's: the same, columns exchanged."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.source_outputs import SourceOutputs
from sskt.sources import Contract


class ReorderedOutputs:
    """See `pipeline.source_outputs.SourceOutputs`. Stores keep each source's own order; here column c is the
    target's c.
    """

    def __init__(self, labels: SourceOutputs, columns: Mapping[str, NDArray[np.int64]]) -> None:
        """`columns`: of each source that is to be reordered, the column of every target class."""
        self._labels = labels
        self._columns = {name: torch.from_numpy(order) for name, order in columns.items()}
        self.kind, self.sees_mixtures = labels.kind, labels.sees_mixtures

    @property
    def n_classes(self) -> Mapping[str, int]:
        """See `SourceOutputs.n_classes`."""
        return self._labels.n_classes

    @property
    def weights_sha256(self) -> Mapping[str, str]:
        """See `SourceOutputs.weights_sha256`."""
        return self._labels.weights_sha256

    @property
    def contracts(self) -> Mapping[str, Contract]:
        """See `SourceOutputs.contracts`."""
        return self._labels.contracts

    @property
    def views(self) -> int | None:
        """See `SourceOutputs.views`."""
        return self._labels.views

    def load(self, view: int, positions: NDArray[np.int64]) -> None:
        """See `SourceOutputs.load`."""
        self._labels.load(view, positions)

    def prepare(self, view: int, positions: NDArray[np.int64]) -> None:
        """See `SourceOutputs.prepare`."""
        self._labels.prepare(view, positions)

    def logits(self, positions: NDArray[np.int64], pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `SourceOutputs.logits`."""
        answers = self._labels.logits(positions, pixels)
        for name, order in self._columns.items():
            if order.device != answers[name].device:
                self._columns[name] = order = order.to(answers[name].device)
            answers[name] = answers[name].index_select(1, order)
        return answers

    def finish(self) -> None:
        """See `SourceOutputs.finish`."""
        self._labels.finish()
