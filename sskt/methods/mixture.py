"""What MixUp and CutMix made of a batch, and losses of mixtures."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Mixture(NamedTuple):
    """Of each row n of a batch: `share` of itself, and the rest of row `partner[n]`."""

    partner: Tensor  # int64 (N,)
    share: Tensor  # float32 scalar, in [0, 1]


def of_both(
    loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, truth: Tensor, mixture: Mixture | None
) -> Tensor:
    """The loss against a row's own truth and its partner's, by their share of the mixture."""
    if mixture is None:
        return loss(logits, truth)
    return mixture.share * loss(logits, truth) + (1 - mixture.share) * loss(logits, truth[mixture.partner])
