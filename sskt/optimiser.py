"""The student's optimiser: SGD with momentum, and what fast recipes change about it, Adam (Kingma and Ba,
2015), or AdamW (Loshchilov and Hutter, 2019); and lower rates for the first layers of a pretrained student.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from sskt.errors import RunError, SettingError

OPTIMIZERS = ("sgd", "adam", "adamw")
_OF_ADAM: dict[str, Any] = {"lr": 1e-3, "dampening": 0.0, "nesterov": False}  # the rate is its authors'
# What an optimiser uses where nothing is given and the recipe is for another one. AdamW's decay is that of
# ViT's, Swin's and ConvNeXt's recipes; SGD's are customary for fine-tuning, whose recipe alone has AdamW
_DEFAULTS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.01, "weight_decay": 1e-4},
    "adam": _OF_ADAM,
    "adamw": _OF_ADAM | {"weight_decay": 0.05},
}
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

    The betas of Adam and AdamW are (momentum, 0.999), their epsilon torch's 1e-8; they have neither
    `dampening` nor `nesterov`. Weight decay is an L2 penalty, except AdamW's, which is decoupled: each step
    takes lr * weight_decay of the weight itself off. Without `decay_norms`, norms and biases have no weight
    decay.
    """
    own = [dict(group) for group in groups] if decay_norms else without_decay_of_norms(groups)
    if kind != "sgd":
        made = Adam if kind == "adam" else AdamW
        return made(own, lr=lr, betas=(momentum, _BETA_2), weight_decay=weight_decay, fused=fused)
    return SGD(
        own,
        lr=lr,
        momentum=momentum,
        dampening=dampening,
        weight_decay=weight_decay,
        nesterov=nesterov,
        fused=fused,
    )


def optimizer_defaults(kind: str | None, recipes: str) -> dict[str, Any]:
    """Settings that replace a recipe's if the user chooses the optimiser `kind` and the recipe is for
    another one, `recipes`; empty if the recipe's fit.
    """
    if kind is None or kind == recipes or (kind == "sgd" and recipes == "adam"):  # whose rates serve both
        return {}
    if kind == "adam" and recipes == "adamw":  # the rate serves both, and a decoupled decay is no L2 penalty
        return {"weight_decay": _DEFAULTS["sgd"]["weight_decay"]}
    return dict(_DEFAULTS.get(kind, {}))


def by_layer(
    groups: Iterable[Mapping[str, Any]], factors: Mapping[Tensor, float], lr: float
) -> list[dict[str, Any]]:
    """Each group as several, with its rate (default `lr`) times the factor of its parameters; those that
    `factors` does not name have 1. Largest factor first, so that the first group's rate is the run's.
    """
    split = []
    for group in groups:
        rate = group.get("lr", lr)
        found = [factors.get(weight, 1.0) for weight in group["params"]]
        for factor in sorted({*found}, reverse=True):
            mine = [w for w, own in zip(group["params"], found, strict=True) if own == factor]
            split.append({**group, "params": mine, "lr": rate * factor})
    return split


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


def require_layer_decay(factor: float) -> None:
    """Raise SettingError for a factor per layer outside (0, 1]."""
    if not 0 < factor <= 1:
        raise SettingError(
            "layer_decay",
            f"is {factor:g}, expected more than 0 and at most 1, such as 0.75; 1 gives every layer the same "
            f"rate",
        )


def require_adam(kind: str, momentum: float, dampening: float, nesterov: bool) -> None:
    """Raise RunError for settings that Adam and AdamW do not have, or cannot."""
    for option, is_given in (("--nesterov", nesterov), (f"dampening {dampening:g}", dampening != 0)):
        if is_given:
            raise RunError(f"--optimizer {kind} has no {option}; leave it out, or use --optimizer sgd")
    if momentum == 1:
        raise RunError(
            f"--optimizer {kind} needs a momentum below 1, its first beta, this run has 1; use 0.9"
        )


def require_nesterov(momentum: float, dampening: float) -> None:
    """Raise RunError for a momentum that cannot be Nesterov's."""
    if momentum == 0 or dampening != 0:
        raise RunError(
            f"--nesterov needs a momentum above 0 without dampening, this run has momentum {momentum:g} and "
            f"dampening {dampening:g}; use --no-nesterov"
        )
