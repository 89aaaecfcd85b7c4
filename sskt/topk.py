"""Top-k logits: the k largest of a row, and four numbers that give the weight of the rest at any temperature.

With K classes, z_k the k-th largest logit and beta = 1 / T, the tail's sum is

    sum over the K - k others of exp(beta z_i)  =  (K - k) exp(beta (z_k + h(beta))),    h(beta) <= 0.

z_k + h(beta) is the logit that every class of the tail would have if they shared their weight evenly: the
mean of the tail's logits for beta -> 0, and its log-sum-exp minus log(K - k) for beta = 1. h rises slowly and
smoothly, so its values at four temperatures determine it at all others: from T = 1/2 up, the total
probability of the top 64 is off by less than 0.01 in every real row that was tried (benchmarks/topk.py),
while renormalising the top k is off by the whole tail.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sskt.errors import SourceError
from sskt.normalise import on_device

TAIL_NUMBERS = 4

_BETAS = (0.0, 0.2, 0.6, 2.0)  # T = infinity, 5, 5/3 and 1/2, where h is exact up to float16 rounding
_BEND = 0.5  # of h, between small and large beta; this and the betas gave the smallest error on real logits
_MAX_CLASSES = 1 << 16
_F16_MAX = 65504.0


def row_width(k: int) -> int:
    """Number of uint16 per row: k values, k class indices, and four for the tail."""
    return 2 * k + TAIL_NUMBERS


def encode(logits: Tensor, k: int) -> Tensor:
    """Encode float16 logits (N, K) as uint16 rows (N, 2k + 4) on the same device.

    A row holds the bit patterns of the k largest logits, largest first and ties by lower class, their class
    indices, and the bit patterns of the float16 numbers h(beta) for T = infinity, 5, 5/3 and 1/2. Raises
    SourceError unless 1 <= k < K <= 65,536.
    """
    n_classes = logits.shape[1]
    if not 1 <= k < n_classes <= _MAX_CLASSES:
        raise SourceError(
            f"the top {k} of {n_classes} classes cannot be kept, expected 1 <= k < classes <= "
            f"{_MAX_CLASSES}; keep all logits"
        )
    values, classes = logits.sort(dim=1, descending=True, stable=True)
    below = (values[:, k:].float() - values[:, k - 1 : k].float()).double()
    tail = [below.mean(dim=1)] + [
        (torch.logsumexp(beta * below, dim=1) - torch.tensor(float(n_classes - k)).log()) / beta
        for beta in _BETAS[1:]
    ]
    numbers = torch.stack(tail, dim=1).clamp(-_F16_MAX, 0).to(torch.float16)
    indices = classes[:, :k].to(torch.int32).to(torch.uint16)
    parts = (
        values[:, :k].contiguous().view(torch.int16),
        indices.view(torch.int16),
        numbers.view(torch.int16),
    )
    return torch.cat(parts, dim=1).view(torch.uint16)


def decode(rows: Tensor, n_classes: int, temperature: float) -> Tensor:
    """Decode uint16 rows (N, 2k + 4) to float16 logits (N, K), valid only when softened at `temperature`.

    The top k are as stored. All other classes get the logit z_k + h(1 / T): together they have the tail's
    weight, and an even spread assumes least. Below T = 1/2, the h of 1/2 is used.
    """
    k = (rows.shape[1] - TAIL_NUMBERS) // 2
    bits = rows.view(torch.int16)
    values = bits[:, :k].contiguous().view(torch.float16)
    classes = bits[:, k : 2 * k].to(torch.int64) & 0xFFFF
    tail = bits[:, 2 * k :].contiguous().view(torch.float16).float()
    weights = on_device(_weights(min(1 / temperature, _BETAS[-1])), rows.device)
    even = values[:, -1].float() + (tail @ weights).clamp(max=0)
    spread = even.clamp(min=-_F16_MAX).to(torch.float16)[:, None].repeat(1, n_classes)
    return spread.scatter_(1, classes, values)


def _weights(beta: float) -> tuple[float, ...]:
    """Weights of the four numbers in h(beta): the cubic through them in beta / (0.5 + beta), where h is less
    curved.
    """

    def bent(b: float) -> float:
        return b / (_BEND + b)

    s, nodes = bent(beta), [bent(b) for b in _BETAS]
    weights = []
    for i, at in enumerate(nodes):
        weight = 1.0
        for j, other in enumerate(nodes):
            if i != j:
                weight *= (s - other) / (at - other)
        weights.append(weight)
    return tuple(weights)
