"""Gradients of several losses on the weights that they share: compared, gated and added up (Du et al., 2018).

A gate max(0, cos) multiplies an auxiliary gradient on the weights that the primary loss reaches too; weights
that the auxiliary loss alone reaches, its head's, learn from it in full.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Gradients = list[Tensor | None]  # one for each weight; None where the loss does not reach it


def gradients_of(loss: Tensor, weights: Sequence[Tensor], scaled: Callable[[Tensor], Tensor]) -> Gradients:
    """D loss / d weights. `scaled` is the gradient scaler's: what a low precision computes is the gradient of
    scaled(loss), which does not vanish in it as that of the loss itself would, and it is divided afterwards.
    """
    found = torch.autograd.grad(scaled(loss), weights, retain_graph=True, allow_unused=True)
    factor = scaled(torch.ones((), device=loss.device))
    return [None if g is None else g / factor for g in found]


def cosine(primary: Gradients, auxiliary: Gradients) -> Tensor:
    """Of two gradients, on the weights that both losses reach: a scalar, 0 where one of them vanishes, or is
    beyond its precision, in which case a gradient scaler leaves the step out.
    """
    pairs = [(p, a) for p, a in zip(primary, auxiliary, strict=True) if p is not None and a is not None]
    if not pairs:
        device = next((g.device for g in primary + auxiliary if g is not None), None)
        return torch.zeros((), device=device)
    product, of_primary, of_auxiliary = (
        torch.stack([(x * y).sum() for x, y in terms]).sum()
        for terms in (pairs, [(p, p) for p, _ in pairs], [(a, a) for _, a in pairs])
    )
    found = product / (of_primary.sqrt() * of_auxiliary.sqrt())
    return found.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def gated(primary: Gradients, auxiliary: Sequence[Gradients], gates: Sequence[Tensor]) -> Gradients:
    """The primary gradient and the auxiliary ones, each times its gate where the primary loss reaches the
    weight too.
    """
    total: Gradients = []
    for position, own in enumerate(primary):
        together = own
        for gradients, gate in zip(auxiliary, gates, strict=True):
            theirs = gradients[position]
            if theirs is None:
                continue
            theirs = theirs if own is None else gate * theirs
            together = theirs if together is None else together + theirs
        total.append(together)
    return total


def with_gradients(value: Tensor, weights: Sequence[Tensor], gradients: Gradients) -> Tensor:
    """`value`, whose backward pass gives these gradients, times its own, instead of the graph's."""
    reached = [(w, g) for w, g in zip(weights, gradients, strict=True) if g is not None]
    out: Tensor = _Given.apply(value.detach(), *[w for w, _ in reached], *[g for _, g in reached])
    return out


class _Given(torch.autograd.Function):
    """value, n weights, their n gradients -> value."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *weights_and_gradients: Tensor) -> Tensor:
        n = len(weights_and_gradients) // 2
        ctx.save_for_backward(*weights_and_gradients[n:])
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        return (None, *[upstream * g for g in gradients], *[None] * len(gradients))
