"""Source outputs with a probe's among them: logits of the target's own classes, computed from what the stores
say when a batch is asked for; no forward, and no store of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data import Dataset, Positions
from pipeline.runtime import to_device
from pipeline.source_outputs.fit_probe import RunProbe, StoredRows
from pipeline.source_outputs.outputs import SourceOutputs
from pipeline.source_outputs.wrapped import WrappedOutputs
from sskt.probe import probe_features
from sskt.sources import Contract

_ROWS_AT_ONCE = 20_000

T = TypeVar("T")


class ProbedOutputs(WrappedOutputs):
    """See `pipeline.source_outputs.SourceOutputs`: those of `shown` sources, and the probe's."""

    def __init__(
        self,
        outputs: SourceOutputs,
        probe: RunProbe,
        dataset: Dataset,
        *,
        shown: tuple[str, ...],
        table: torch.Tensor | None,
        device: torch.device,
    ) -> None:
        """`table`: float16 (N, C), each sample's answer for its mean over views (see `mean_table`); None: the
        probe answers about the view that is shown, from the logits of `outputs`, which then has every source
        of the probe.
        """
        super().__init__(outputs)
        self.probe, self._shown = probe, shown
        self._table = None if table is None else table.to(device)
        self._folds = torch.from_numpy(probe.folds_of(dataset.ids)).to(device)

    @property
    def n_classes(self) -> Mapping[str, int]:
        """See `SourceOutputs.n_classes`."""
        return {**self._of_shown(self._outputs.n_classes), self.probe.name: self.probe.n_classes}

    @property
    def weights_sha256(self) -> Mapping[str, str]:
        """See `SourceOutputs.weights_sha256`; the probe's is that of what it was fitted on."""
        return {**self._of_shown(self._outputs.weights_sha256), self.probe.name: self.probe.inputs.sha256}

    @property
    def contracts(self) -> Mapping[str, Contract]:
        """See `SourceOutputs.contracts`."""
        return self._of_shown(self._outputs.contracts)

    def logits(self, positions: Positions, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `SourceOutputs.logits`."""
        logits = self._outputs.logits(positions, pixels)
        at = to_device(positions, self._folds.device)
        if self._table is not None:
            answers = self._table[at]
        else:
            features = probe_features(logits[name] for name in self.probe.inputs.sources)
            answers = self.probe.logits(features, self._folds[at])
        return {**self._of_shown(logits), self.probe.name: answers}

    def _of_shown(self, values: Mapping[str, T]) -> dict[str, T]:
        return {name: values[name] for name in self._shown if name in values}


def mean_table(probe: RunProbe, rows: StoredRows, folds: NDArray[np.int64]) -> torch.Tensor:
    """The probe's logits, float16 (N, C), for the mean over the stored views of every sample; `folds` (N,) as
    `RunProbe.folds_of` gives them.
    """
    fold_of, n = torch.from_numpy(folds), len(rows.dataset)
    parts = [
        probe.logits(rows.mean(positions), fold_of[positions])
        for positions in np.split(np.arange(n), range(_ROWS_AT_ONCE, n, _ROWS_AT_ONCE))
    ]
    return torch.cat(parts)
