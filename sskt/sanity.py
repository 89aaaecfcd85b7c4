"""Bounds that no healthy network exceeds, so that a diverged run is never saved as a success.

The largest weight of torchvision's and the paper's trained networks is of order 10; 1e4 is a thousand times
that. A running variance of 1e10 means activations of 1e5, beyond float16's range; a first convolution that
reads grey levels of 0 to 255 can reach 1e7. A logit of 1e4 gives a probability of 1 or 0 at any temperature
in use. Batch norms that have averaged only a few batches can make logits of any size without any fault, so
logits are judged only once the averages have settled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

LARGEST_WEIGHT = 1e4
LARGEST_AVERAGE = 1e10  # of a batch norm's running mean and variance
LARGEST_LOGIT = 1e4
_SETTLED_AFTER = 100  # batches: with torch's momentum, 0.9**100 = 3e-5 of the initial average is left


def insane_weight(state: Mapping[str, Tensor], averages: Iterable[str]) -> tuple[str, float] | None:
    """The first of a module's tensors with a value that is not finite or exceeds its bound, and that value.

    `averages` are the names of its buffers. Synchronises with a GPU once.
    """
    named = {name: tensor for name, tensor in state.items() if tensor.is_floating_point() and tensor.numel()}
    if not named:
        return None
    norms = [torch.linalg.vector_norm(tensor.detach(), math.inf).float() for tensor in named.values()]
    largest = torch.stack(norms).tolist()
    buffers = set(averages)
    for name, value in zip(named, largest, strict=True):
        if not value <= (LARGEST_AVERAGE if name in buffers else LARGEST_WEIGHT):
            return name, value
    return None


def insane_rows(logits: Tensor, largest: float = LARGEST_LOGIT) -> list[int]:
    """The rows of (N, K) logits with a value that is not finite or exceeds `largest`."""
    rows: list[int] = (~(logits.float().abs().amax(dim=1) <= largest)).nonzero()[:, 0].tolist()
    return rows


def has_settled(module: nn.Module) -> bool:
    """Whether the network's batch norms, if any, have averaged enough batches for its logits to be judged."""
    n_batches = [n for name, n in module.named_buffers() if name.endswith("num_batches_tracked")]
    return not n_batches or int(torch.stack(n_batches).min()) >= _SETTLED_AFTER


def worst_value(row: Tensor) -> float:
    """A non-finite value of one row of logits if there is one, else the value furthest from 0."""
    row = row.float()
    bad = row[~row.isfinite()]
    return float(bad[0] if len(bad) else row[row.abs().argmax()])
