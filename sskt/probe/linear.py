"""One linear probe: logistic regression with an L2 penalty, fitted by L-BFGS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of logistic regression: weight of the summed loss
_ITERATIONS = 100
_TOLERANCE = 3e-4  # of the largest entry of the mean loss's gradient
_HISTORY = 20  # steps that shape the next one: of 100, on few samples, their sums took half of the time
_NEVER = -30.0  # the logit of a class that no sample has


@dataclass(frozen=True, slots=True, eq=False)
class LinearProbe:
    """z = x @ weight + bias: float32 `weight` (D, C) and `bias` (C,)."""

    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Logits (..., C) of features (..., D)."""
        return features @ self.weight + self.bias


def fit_linear(
    features: Tensor, truth: Tensor, n_classes: int, *, strength: float, start: LinearProbe | None = None
) -> LinearProbe:
    """Minimise strength * summed loss + |weight|^2 / 2; the bias is not penalised.

    features: float32 (n, D). truth: int64 labels (n,), with cross-entropy; or multi-hot (n, C), with binary
    cross-entropy of each class, where -1 does not count. A class that no sample has (multi-hot: that none
    has, or all have) gets a constant logit. `start`: a probe to begin from, which saves steps.
    """
    fitted = _varies(truth, n_classes)
    weight = features.new_zeros((features.shape[1], n_classes))
    bias = features.new_full((n_classes,), _NEVER)
    if truth.ndim == 2:
        bias[(truth != 0).all(dim=0) & (truth == 1).any(dim=0)] = -_NEVER
    if start is not None:
        weight[:, fitted], bias[fitted] = start.weight[:, fitted], start.bias[fitted]
    else:
        bias[fitted] = 0.0
    own = weight[:, fitted].requires_grad_(), bias[fitted].requires_grad_()
    loss = _loss(features, truth, fitted)
    optimiser = torch.optim.LBFGS(
        own,
        max_iter=_ITERATIONS,
        tolerance_grad=_TOLERANCE,
        tolerance_change=0,
        history_size=_HISTORY,
        line_search_fn="strong_wolfe",
    )

    def evaluate() -> Tensor:
        optimiser.zero_grad()
        penalised = loss(*own) + own[0].square().sum() / (2 * strength * len(features))
        torch.autograd.backward(penalised)
        return penalised.detach()

    with torch.enable_grad():
        optimiser.step(evaluate)  # type: ignore[no-untyped-call]
    weight[:, fitted], bias[fitted] = own[0].detach(), own[1].detach()
    return LinearProbe(weight, bias)


def _varies(truth: Tensor, n_classes: int) -> Tensor:
    """The classes whose logits can be fitted, ascending."""
    if truth.ndim == 1:
        present: Tensor = torch.unique(truth)
        return present
    some = (truth == 1).any(dim=0) & (truth == 0).any(dim=0)
    return torch.arange(n_classes, device=truth.device)[some]


def _loss(features: Tensor, truth: Tensor, fitted: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The mean loss over samples, of the weight and bias of the classes in `fitted`."""
    if truth.ndim == 1:
        labels = torch.searchsorted(fitted, truth)

        def of_one(weight: Tensor, bias: Tensor) -> Tensor:
            return nn.functional.cross_entropy(features @ weight + bias, labels)

        return of_one
    counted = truth[:, fitted] >= 0
    positive = (truth[:, fitted] == 1).float()

    def of_several(weight: Tensor, bias: Tensor) -> Tensor:
        terms = nn.functional.binary_cross_entropy_with_logits(
            features @ weight + bias, positive, reduction="none"
        )
        mean: Tensor = (terms * counted).sum() / len(features)
        return mean

    return of_several
