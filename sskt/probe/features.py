"""What a probe reads: the rows of one or more sources, each brought to one scale, side by side."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from sskt.losses import layer_normalised


def probe_features(rows: Iterable[Tensor]) -> Tensor:
    """Layer-normalised rows (..., D), the columns of one source after the other's, in float64.

    Every row (..., K) of a source, logits or an embedding, gets mean 0 and standard deviation 1: a shift of
    all logits says nothing, and sources that are more or less sure of themselves count alike.
    """
    return torch.cat([layer_normalised(of_source.double()) for of_source in rows], dim=-1)
