"""The student's optimiser: SGD with momentum, and what fast recipes change about it, or Adam (Kingma and Ba,
2015).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch.optim import SGD, Adam, Optimizer

from sskt.errors import RunError

OPTIMIZERS = ("sgd", "adam")
ADAM_LR = 1e-3  # Adam's initial rate where none is given: its authors'. Recipes' rates are SGD's
_BETA_2 = 0.999


def build_optimizer(
    kind: str,
    groups: Iterable[Mapping[str, Any]],
    *,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    decay_norms: bool,
    fused: bool,
) -> Optimizer:
    """The optimiser of OPTIMIZERS over parameter groups, which may have settings of their own.

    Adam's betas are (momentum, 0.999), its epsilon torch's 1e-8, its weight decay an L2 penalty like SGD's
    and not decoupled; it has neither `dampening` nor `nesterov`. Without `decay_norms`, norms and biases have
    no weight decay.
    """
    own = [dict(group) for group in groups] if decay_norms else without_decay_of_norms(groups)
    if kind == "adam":
        return Adam(own, lr=lr, betas=(momentum, _BETA_2), weight_decay=weight_decay, fused=fused)
    return SGD(
        own,
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


def require_adam(momentum: float, dampening: float, nesterov: bool) -> None:
    """Raise RunError for settings that Adam does not have, or cannot."""
    for option, is_given in (("--nesterov", nesterov), (f"dampening {dampening:g}", dampening != 0)):
        if is_given:
            raise RunError(f"--optimizer adam has no {option}; leave it out, or use --optimizer sgd")
    if momentum == 1:
        raise RunError("--optimizer adam needs a momentum below 1, its first beta, this run has 1; use 0.9")


def require_nesterov(momentum: float, dampening: float) -> None:
    """Raise RunError for a momentum that cannot be Nesterov's."""
    if momentum == 0 or dampening != 0:
        raise RunError(
            f"--nesterov needs a momentum above 0 without dampening, this run has momentum {momentum:g} and "
            f"dampening {dampening:g}; use --no-nesterov"
        )
