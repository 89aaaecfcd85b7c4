"""The interface to a batch's source outputs, whatever they come from (docs/method.md, promise 6).

Each returns a dict from source name to the output of that source which the name asks for
(`sskt.sources.source`): logits, an embedding or maps, all called logits here. It is a float16 tensor on the
training device, (N, K_m), of maps (N, C, g, g), for exactly the pixels that the student sees. Outputs of one
network, such as "imagenet" and "imagenet@layer4", are computed by one forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from pipeline.data import Positions
from sskt.sources import Contract


class SourceOutputs(Protocol):
    """One output of each source, looked up by sample."""

    kind: str  # "cached", "live" or "write-through"
    sees_mixtures: bool  # True: sources see the mixed images; False: the logits of both images are mixed

    @property
    def n_classes(self) -> Mapping[str, int]:
        """K_m: classes per source, or numbers of its embedding or maps (C g g)."""

    @property
    def weights_sha256(self) -> Mapping[str, str]:
        """sha256 of the weights behind each source's logits."""

    @property
    def contracts(self) -> Mapping[str, Contract]:
        """What the user or the source's own file declares about each source."""

    @property
    def views(self) -> int | None:
        """How many views the epochs cycle through; None: every epoch draws a new one."""

    def load(self, view: int, positions: Positions) -> None:
        """Make the sorted rows `positions` of one view ready; called before the first batch of an epoch."""

    def prepare(self, view: int, positions: Positions) -> None:
        """Start preparing what the next `load` will ask for, while the current view is in use."""

    def logits(self, positions: Positions, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Each source's logits (N, K_m) or maps (N, C, g, g), float16, for the samples at `positions` in the
        dataset, whose pixels are uint8 (N, 3, H, W).
        """

    def check(self) -> None:
        """Raise NonFiniteLogitsError if rows that were given since the last call make no sense; on a CPU
        `logits` itself does so, on CUDA a look at them waits for the device.
        """

    def finish(self) -> None:
        """End the epoch: every row that was requested has been used."""
