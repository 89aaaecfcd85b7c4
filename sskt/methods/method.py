"""What every method has in common: from a batch's pixels, labels and source logits to the losses of one step.

A method is one module, so that it can be compiled, or run on several devices, as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sskt.losses import (
    focal,
    kd_divergence,
    multilabel_bce,
    multilabel_divergence,
    soft_cross_entropy,
    soft_focal,
)
from sskt.normalise import normalise
from sskt.students.student import Student, memory_layout


class Pairs(NamedTuple):
    """The mixture that MixUp or CutMix made of a batch: `share` of row n, the rest of row `partner[n]`."""

    partner: Tensor  # int64 (N,)
    share: Tensor  # float32 scalar, in [0, 1]


class Losses(NamedTuple):
    """Means over the batch; only `total` carries a gradient."""

    total: Tensor  # float32 scalar
    primary: Tensor  # float32 scalar
    auxiliary: Tensor  # float32 (M,), in the order of the method's auxiliary_names, not weighted
    correct: Tensor  # int64 scalar: rows whose largest primary logit is a label of theirs (mixed: of row n)
    recorded: Tensor  # float32 (R,), in the order of the method's recorded_names


@dataclass(frozen=True, slots=True)
class Terms:
    """Which losses, and their settings; see `sskt.losses`. Logits are taken to float32."""

    alpha: float
    temperature: float
    aux_loss: str  # one of sskt.losses.AUXILIARY_LOSSES
    kd_reduction: str
    primary_loss: str  # one of sskt.losses.PRIMARY_LOSSES
    label_smoothing: float = 0.0

    def primary(self, logits: Tensor, labels: Tensor, mixed: Pairs | None = None) -> Tensor:
        """L_prim of primary logits (N, C) and labels int64 (N,), or presence (N, C)."""
        return self._of_both(self._primary, logits.float(), labels, mixed)

    def auxiliary(self, logits: Tensor, source_logits: Tensor, mixed: Pairs | None = None) -> Tensor:
        """L_aux of one source: logits and source_logits (N, K)."""
        return self._of_both(self._auxiliary, logits.float(), source_logits.float(), mixed)

    def distance(self, logits: Tensor, teacher_logits: Tensor, mixed: Pairs | None = None) -> Tensor:
        """How far primary logits (N, C) are from a teacher's of the same classes: L_aux, or of several labels
        a picture the divergence of each class's two answers.
        """
        loss = self._multi_hot if self.primary_loss == "bce" else self._auxiliary
        return self._of_both(loss, logits.float(), teacher_logits.float(), mixed)

    def _primary(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.primary_loss == "bce":
            return multilabel_bce(logits, labels)
        if self.primary_loss == "focal":
            return focal(logits, labels)
        return F.cross_entropy(logits, labels, reduction="mean", label_smoothing=self.label_smoothing)

    def _auxiliary(self, logits: Tensor, source_logits: Tensor) -> Tensor:
        if self.aux_loss == "ce":
            return soft_cross_entropy(logits, source_logits, temperature=self.temperature)
        if self.aux_loss == "focal":
            return soft_focal(logits, source_logits, temperature=self.temperature)
        return kd_divergence(logits, source_logits, temperature=self.temperature, reduction=self.kd_reduction)

    def _multi_hot(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        return multilabel_divergence(
            logits, teacher_logits, temperature=self.temperature, reduction=self.kd_reduction
        )

    @staticmethod
    def _of_both(
        loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, truth: Tensor, pairs: Pairs | None
    ) -> Tensor:
        """The loss against a row's own truth and its partner's, by their share of the mixture."""
        if pairs is None:
            return loss(logits, truth)
        return pairs.share * loss(logits, truth) + (1 - pairs.share) * loss(logits, truth[pairs.partner])


class Method(nn.Module):
    """A student and how it learns. Subclasses say what one step minimises (`forward`)."""

    def __init__(self, student: Student, terms: Terms, *, channels_last: bool) -> None:
        super().__init__()
        self.student = student  # the one that is scored and kept
        self.terms = terms
        self.auxiliary_names: tuple[str, ...] = student.source_names
        self.recorded_names: tuple[str, ...] = ()
        self.rate = 0.0  # the learning rate in force, for methods that look ahead
        # the gradient scaler's, for methods that take gradients within their step
        self.scaled: Callable[[Tensor], Tensor] = _as_it_is
        self._layout = memory_layout(student) if channels_last else torch.contiguous_format

    def forward(
        self,
        pixels: Tensor,
        labels: Tensor,
        source_logits: Mapping[str, Tensor],
        mixed: Pairs | None = None,
        mixed_sources: Pairs | None = None,
    ) -> Losses:
        """Losses of one batch: pixels uint8 (N, 3, H, W) or (N, 3, D, H, W), labels int64 (N,) or presence
        (N, C), each source's logits (N, K).

        `mixed` says that the pixels are mixtures: the primary loss is that of both labels, by their share.
        `mixed_sources` says it of the source logits, which then are those of the unmixed pictures; where the
        sources have seen the mixtures themselves it is None.
        """
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimiser moves; a group may have settings of its own."""
        return [{"params": [weight for weight in self.parameters() if weight.requires_grad]}]

    def _seen(self, pixels: Tensor) -> Tensor:
        """Pixels as the student wants them."""
        backbone = self.student.backbone
        return normalise(pixels, backbone.mean, backbone.std).contiguous(memory_format=self._layout)


def stacked(values: list[Tensor], like: Tensor) -> Tensor:
    """Scalars as one detached vector, also where there are none."""
    return torch.stack(values).detach() if values else like.new_zeros(0)


def n_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """See `Losses.correct`."""
    said = logits.detach().argmax(dim=1)
    return (said == labels if labels.ndim == 1 else labels.gather(1, said[:, None]) == 1).sum()


def _as_it_is(loss: Tensor) -> Tensor:
    """No scaling, as in every precision but float16."""
    return loss
