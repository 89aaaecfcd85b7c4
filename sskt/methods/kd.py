"""Knowledge distillation (Hinton et al., 2015): the primary head itself learns what teachers of the same task
say.

L = (1 - alpha) * L_prim + alpha * mean over teachers of L_aux(z, z_s), with T^2 * KL as L_aux, "batchmean".
With several labels per image: T^2 times the mean divergence of each class's two answers, sigmoids at T.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sskt.errors import RunError, SettingError
from sskt.losses import LOGITS_LOSSES
from sskt.methods.config import SourceConfig
from sskt.methods.method import Losses, Method, Mixture, Parts, n_correct, require_teachers, stacked
from sskt.students import Student


@dataclass(frozen=True, slots=True, kw_only=True)
class KdConfig(SourceConfig):
    """`alpha` is the teachers' share of the loss."""

    kd_reduction: str = "batchmean"

    def __post_init__(self) -> None:
        """Raises RunError for a value that no training can have."""
        SourceConfig.__post_init__(self)
        if self.aux_loss not in LOGITS_LOSSES:
            raise RunError(
                f"--aux-loss {self.aux_loss} is of source heads, which --method kd has none of; use "
                f"{' or '.join(LOGITS_LOSSES)}, or --method sskt"
            )
        if self.alpha > 1:
            raise SettingError(
                "alpha",
                f"is {self.alpha:g}, expected at most 1 with --method kd, where it is the teacher's share of "
                f"the loss",
            )


class Kd(Method):
    """A student without auxiliary heads, whose teachers know its own classes."""

    Config = KdConfig
    needs = ("logits",)
    shares_classes = reads_unlabelled = True

    @classmethod
    def build(cls, config: KdConfig, parts: Parts) -> Kd:
        """See `Method.build`."""
        student = parts.student(parts.backbone, {})
        return cls(student, config, channels_last=parts.channels_last, teachers=parts.source_classes)

    @classmethod
    def reduction(cls, primary_loss: str) -> str:
        """See `Method.reduction`."""
        return "mean" if primary_loss == "bce" else "batchmean"

    def __init__(
        self, student: Student, config: KdConfig, *, channels_last: bool, teachers: Mapping[str, int]
    ) -> None:
        """`teachers`: their number of classes by name. Raises RunError if there is none, or one has other
        classes, or if a softmax is asked for and images have several labels.
        """
        super().__init__(student, config, channels_last=channels_last)
        require_teachers("kd", teachers, student.head.out_features)
        if config.primary_loss == "bce" and config.aux_loss != "kd":
            raise RunError(
                f"--method kd: --aux-loss {config.aux_loss} is for one label per image, this target has "
                f"several; use kd"
            )
        self.auxiliary_names = tuple(teachers)

    def forward(
        self,
        pixels: Tensor,
        labels: Tensor,
        source_logits: Mapping[str, Tensor],
        mixed: Mixture | None = None,
        mixed_sources: Mixture | None = None,
    ) -> Losses:
        """See `Method.forward`."""
        logits, _ = self.student(self._seen(pixels))
        primary = self.config.primary(logits, labels, mixed, self.labelled_share)
        distances = [
            self.config.distance(logits, source_logits[name], mixed_sources) for name in self.auxiliary_names
        ]
        distance = torch.stack(distances).mean()
        total = (1 - self.config.alpha) * primary + self.config.alpha * distance
        return Losses(
            total,
            primary.detach(),
            stacked(distances, primary),
            n_correct(logits, labels),
            stacked([], primary),
        )
