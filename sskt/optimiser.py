"""The student's optimiser: SGD with momentum, as in the papers, and what fast recipes change about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch.optim import SGD

from sskt.errors import RunError


def build_sgd(
    groups: Iterable[Mapping[str, Any]],
    *,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    decay_norms: bool,
    fused: bool,
) -> SGD:
    """SGD over parameter groups, which may have settings of their own. Without `decay_norms`, norms and
    biases have no weight decay.
    """
    return SGD(
        [dict(group) for group in groups] if decay_norms else without_decay_of_norms(groups),
        lr=lr,
        momentum=momentum,
        dampening=dampening,
        weight_decay=weight_decay,
        nesterov=nesterov,
        fused=fused,
    )


def without_decay_of_norms(groups: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each group as two: its matrices and kernels, and, without weight decay, its vectors: what norms have,
    and biases.
    """
    split = []
    for group in groups:
        kernels = [weight for weight in group["params"] if weight.ndim > 1]
        vectors = [weight for weight in group["params"] if weight.ndim <= 1]
        if kernels:
            split.append({**group, "params": kernels})
        if vectors:
            split.append({**group, "params": vectors, "weight_decay": 0.0})
    return split


def require_nesterov(momentum: float, dampening: float) -> None:
    """Raise RunError for a momentum that cannot be Nesterov's."""
    if momentum == 0 or dampening != 0:
        raise RunError(
            f"--nesterov needs a momentum above 0 without dampening, this run has momentum {momentum:g} and "
            f"dampening {dampening:g}; use --no-nesterov"
        )
