"""What a probe reads: the logits of one or more sources, each brought to one scale, side by side."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_SMALLEST = 1e-6  # standard deviation of a row that is all but constant


def probe_features(logits: Iterable[Tensor]) -> Tensor:
    """Layer-normalised logits (..., D), the columns of one source after the other's, in float64.

    Every row (..., K) of a source gets mean 0 and standard deviation 1: a shift of all logits says nothing,
    and sources that are more or less sure of themselves count alike.
    """
    return torch.cat([_normalised(rows.double()) for rows in logits], dim=-1)


def _normalised(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(dim=-1, keepdim=True)
    return centred / centred.square().mean(dim=-1, keepdim=True).sqrt().clamp(min=_SMALLEST)
