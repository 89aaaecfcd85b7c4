"""What a student minimises: L = L_prim + alpha * sum over sources of L_aux (SSKT eq. 1, 5, 7).

One module from pixels to losses, so that it can be compiled, or run on several devices, as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sskt.losses import focal, kd_divergence, presence_bce, soft_cross_entropy, soft_focal
from sskt.normalise import normalise
from sskt.student import Student, memory_layout


class Pairs(NamedTuple):
    """The mixture that MixUp or CutMix made of a batch: `share` of row n, the rest of row `partner[n]`."""

    partner: Tensor  # int64 (N,)
    share: Tensor  # float32 scalar, in [0, 1]


class Losses(NamedTuple):
    """Means over the batch; only `total` carries a gradient."""

    total: Tensor  # float32 scalar
    primary: Tensor  # float32 scalar
    auxiliary: Tensor  # float32 (M,), in the order of the student's sources, not weighted by alpha
    correct: (
        Tensor  # int64 scalar: rows whose largest primary logit is a label of theirs (a mixture: of row n)
    )


class Objective(nn.Module):
    """A student and how it is taught; see `sskt.losses` for the terms."""

    def __init__(
        self,
        student: Student,
        *,
        alpha: float,
        temperature: float,
        aux_loss: str,
        kd_reduction: str,
        primary_loss: str,
        label_smoothing: float,
        channels_last: bool,
    ) -> None:
        super().__init__()
        self.student = student
        self._alpha, self._temperature = alpha, temperature
        self._aux_loss, self._kd_reduction, self._primary_loss = aux_loss, kd_reduction, primary_loss
        self._label_smoothing = label_smoothing
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
        sources have seen the mixtures themselves it is None. Losses are computed in float32.
        """
        backbone = self.student.backbone
        x = normalise(pixels, backbone.mean, backbone.std).contiguous(memory_format=self._layout)
        primary_logits, auxiliary_logits = self.student(x)
        primary = self._of_both(self._primary, primary_logits.float(), labels, mixed)
        auxiliary = [
            self._of_both(self._auxiliary, logits.float(), source_logits[name].float(), mixed_sources)
            for name, logits in auxiliary_logits.items()
        ]
        stacked = torch.stack(auxiliary) if auxiliary else primary.new_zeros(0)
        total = primary + self._alpha * stacked.sum()
        said = primary_logits.detach().argmax(dim=1)
        correct = (said == labels if labels.ndim == 1 else labels.gather(1, said[:, None]) == 1).sum()
        return Losses(total, primary.detach(), stacked.detach(), correct)

    def _primary(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self._primary_loss == "bce":
            return presence_bce(logits, labels)
        if self._primary_loss == "focal":
            return focal(logits, labels)
        return F.cross_entropy(logits, labels, reduction="mean", label_smoothing=self._label_smoothing)

    def _auxiliary(self, logits: Tensor, source_logits: Tensor) -> Tensor:
        if self._aux_loss == "ce":
            return soft_cross_entropy(logits, source_logits, temperature=self._temperature)
        if self._aux_loss == "focal":
            return soft_focal(logits, source_logits, temperature=self._temperature)
        return kd_divergence(
            logits, source_logits, temperature=self._temperature, reduction=self._kd_reduction
        )

    @staticmethod
    def _of_both(
        loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, truth: Tensor, pairs: Pairs | None
    ) -> Tensor:
        """The loss against a row's own truth and its partner's, by their share of the mixture."""
        if pairs is None:
            return loss(logits, truth)
        return pairs.share * loss(logits, truth) + (1 - pairs.share) * loss(logits, truth[pairs.partner])
