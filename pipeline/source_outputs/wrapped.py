"""Source outputs that change what others say, and else are those."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.data import Positions
from pipeline.source_outputs.outputs import SourceOutputs
from sskt.sources import Contract


class WrappedOutputs:
    """See `pipeline.source_outputs.SourceOutputs`; a subclass says what `logits` are."""

    def __init__(self, outputs: SourceOutputs) -> None:
        self._outputs = outputs
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

    def load(self, view: int, positions: Positions) -> None:
        """See `SourceOutputs.load`."""
        self._outputs.load(view, positions)

    def prepare(self, view: int, positions: Positions) -> None:
        """See `SourceOutputs.prepare`."""
        self._outputs.prepare(view, positions)

    def check(self) -> None:
        """See `SourceOutputs.check`."""
        self._outputs.check()

    def finish(self) -> None:
        """See `SourceOutputs.finish`."""
        self._outputs.finish()
