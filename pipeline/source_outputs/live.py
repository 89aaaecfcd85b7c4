"""Outputs computed by the sources at every step: the cost that a store saves."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pipeline.data import Positions
from pipeline.source_outputs.cached import shaped
from pipeline.source_outputs.networks import LiveNetworks, LiveSource
from sskt.sources import Contract, output_of


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
        """`sources` maps several names to the same network where it computes all of them."""
        self._sources, self.views, self.contracts = sources, views, contracts or {}
        self._networks = LiveNetworks()
        self._columns = {name: live.source.columns_of(output_of(name)) for name, live in sources.items()}
        self.n_classes = {name: columns.stop - columns.start for name, columns in self._columns.items()}
        self.weights_sha256 = {name: live.source.weights_sha256 for name, live in sources.items()}

    def load(self, view: int, positions: Positions) -> None:
        """See `SourceOutputs.load`. Nothing to do."""

    def prepare(self, view: int, positions: Positions) -> None:
        """See `SourceOutputs.prepare`. Nothing to do."""

    def logits(self, positions: Positions, pixels: torch.Tensor) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """See `SourceOutputs.logits`."""
        rows = self._networks.rows(self._sources.values(), pixels)
        return {
            name: shaped(rows[live][:, self._columns[name]], output_of(name))
            for name, live in self._sources.items()
        }

    def check(self) -> None:
        """See `SourceOutputs.check`."""
        self._networks.check()

    def finish(self) -> None:
        """See `SourceOutputs.finish`."""
        self.check()
