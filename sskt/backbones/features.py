"""What every backbone is and yields."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


class Features(NamedTuple):
    """One forward of a backbone."""

    blocks: list[Tensor]  # the output of each resolution stage: float (N, block_channels[b], H_b, W_b)
    pooled: Tensor  # global average of the last block: float (N, n_features)


class Backbone(nn.Module):
    """A network without head, from normalised float (N, 3, H, W) to Features."""

    block_channels: tuple[int, ...]
    n_features: int
    transfer_width: int  # output width of the transfer module's bottlenecks
