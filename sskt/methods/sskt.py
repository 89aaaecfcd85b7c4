"""SSKT: L = L_prim + alpha * sum over sources of L_aux (SSKT eq. 1, 5, 7).

With a probe, which knows the target's own classes, L_prim becomes (1 - w) * L_prim + w * KD(z, z_probe).
L_prim is that of samples with a label, KD and L_aux those of all samples. The paper has no probe.

The gradients of the losses on the weights that they share can be compared on the way, and auxiliary gradients
gated by it there (Du et al., 2018, "Adapting auxiliary losses using gradient similarity"), which the paper
names as open work.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sskt.errors import RunError
from sskt.losses import kd_divergence, multilabel_divergence
from sskt.methods.config import SourceConfig
from sskt.methods.gradients import cosine, gated, gradients_of, with_gradients
from sskt.methods.method import (
    Losses,
    Method,
    Mixture,
    Parts,
    n_correct,
    of_both,
    require_choice,
    require_range,
    stacked,
)
from sskt.students import AUXILIARY_HEADS, Student

GRADIENT_COSINE = ("off", "record", "weigh")
GATES = ("shared", "losses")


@dataclass(frozen=True, slots=True, kw_only=True)
class SsktConfig(SourceConfig):
    """`gates` is one of GATES: "losses" weighs whole auxiliary losses, their heads' gradients too. It is how
    runs were begun before there was "shared", and is for resuming those.
    """

    transfer_module: bool = False
    aux_head: str = "linear"  # one of AUXILIARY_HEADS
    gradient_cosine: str = "off"  # one of GRADIENT_COSINE
    gates: str = "shared"
    probe_weight: float = 0.9  # w: the probe's share of the primary loss
    probe_temperature: float = 1.0  # its logits are calibrated at 1

    def __post_init__(self) -> None:
        """Raises RunError for a value that no training can have."""
        SourceConfig.__post_init__(self)
        require_choice("gradient_cosine", self.gradient_cosine, GRADIENT_COSINE)
        require_choice("aux_head", self.aux_head, AUXILIARY_HEADS)
        if self.transfer_module and self.aux_head != "linear":
            raise RunError(
                f"--aux-head {self.aux_head} replaces a linear head on the last feature, and with "
                f"--transfer-module source heads read every block; leave one of them out"
            )
        require_range("probe_weight", self.probe_weight, 0, 1)
        require_range("probe_temperature", self.probe_temperature, math.ulp(0), math.inf)

    def taught(self, logits: Tensor, probe_logits: Tensor, mixed: Mixture | None = None) -> Tensor:
        """How far primary logits (N, C) are from the probe's: KD, "batchmean"; with several labels per image,
        the divergence of each class's two answers.
        """
        if self.primary_loss == "bce":
            loss = partial(multilabel_divergence, temperature=self.probe_temperature, reduction="mean")
        else:
            loss = partial(kd_divergence, temperature=self.probe_temperature, reduction="batchmean")
        return of_both(loss, logits.float(), probe_logits.float(), mixed)


class Sskt(Method):
    """A student with one auxiliary head per source.

    `gradient_cosine`: "record" the cosine of each auxiliary gradient with the primary one on the weights that
    both losses reach, or also "weigh" each auxiliary gradient by it there, where it is above 0. The heads of
    the sources, transfer modules included, learn ungated. Either costs a backward pass a source more.
    """

    Config = SsktConfig
    needs = ("logits", "pooled", "embedding")
    of_heads = (
        "transfer_module", "aux_head", "aux_loss", "kd_reduction", "alpha", "temperature", "gradient_cosine",
    )  # fmt: skip
    reads_unlabelled = True

    @classmethod
    def build(cls, config: SsktConfig, parts: Parts) -> Sskt:
        """See `Method.build`."""
        heads = {name: n for name, n in parts.source_classes.items() if name != parts.probe}
        student = parts.student(
            parts.backbone, heads, transfer_module=config.transfer_module, aux_head=config.aux_head
        )
        return cls(student, config, channels_last=parts.channels_last, probe=parts.probe)

    @classmethod
    def inner_gradients(cls, config: SsktConfig) -> str | None:
        """See `Method.inner_gradients`."""
        return None if config.gradient_cosine == "off" else f"--gradient-cosine {config.gradient_cosine}"

    def __init__(
        self, student: Student, config: SsktConfig, *, channels_last: bool, probe: str | None = None
    ) -> None:
        """`probe` names the source that teaches the primary head. Raises RunError for comparing gradients of
        a backbone that is frozen as a whole, or beside a probe.
        """
        super().__init__(student, config, channels_last=channels_last)
        self.probe = probe
        gradient_cosine = config.gradient_cosine
        moving = any(weight.requires_grad for weight in student.backbone.parameters())
        if gradient_cosine != "off" and not moving:
            raise RunError(
                f"--gradient-cosine {gradient_cosine} compares gradients on the backbone's weights, and all "
                f"of them are frozen; leave it out, or freeze less than --freeze-until head"
            )
        if gradient_cosine != "off" and probe is not None:
            raise RunError(
                f"--gradient-cosine {gradient_cosine} compares the sources' gradients with that of the "
                f"labels, and {probe} has a part in that one; leave one of them out"
            )
        if probe is not None:
            self.auxiliary_names = (*student.source_names, probe)
        if gradient_cosine != "off":
            self.recorded_names = tuple(f"gradient_cosine/{name}" for name in student.source_names)

    def forward(
        self,
        pixels: Tensor,
        labels: Tensor,
        source_logits: Mapping[str, Tensor],
        mixed: Mixture | None = None,
        mixed_sources: Mixture | None = None,
    ) -> Losses:
        """See `Method.forward`. Where auxiliary gradients are gated, `total` is still the value of eq. 1."""
        primary_logits, auxiliary_logits = self.student(self._seen(pixels))
        primary = self.config.primary(primary_logits, labels, mixed, self.labelled_share)
        auxiliary = [
            self.config.auxiliary(logits, source_logits[name], mixed_sources)
            for name, logits in auxiliary_logits.items()
        ]
        # without heads nothing is added: torch.compile takes `primary + 0` for its detached twin
        total = primary + self.config.alpha * torch.stack(auxiliary).sum() if auxiliary else primary
        if self.probe is not None:
            taught = self.config.taught(primary_logits, source_logits[self.probe], mixed_sources)
            total = total + self.config.probe_weight * (taught - primary)
            auxiliary.append(taught)
        cosines: list[Tensor] = []
        if self.config.gradient_cosine != "off" and torch.is_grad_enabled():
            total, cosines = self._compared(primary, auxiliary, total)
        return Losses(
            total,
            primary.detach(),
            stacked(auxiliary, primary),
            n_correct(primary_logits, labels),
            stacked(cosines, primary),
        )

    def _compared(
        self, primary: Tensor, auxiliary: list[Tensor], total: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """What to minimise, and the cosine of each auxiliary gradient with the primary one."""
        weights = [weight for weight in self.student.parameters() if weight.requires_grad]
        own = gradients_of(primary, weights, self.scaled)
        alpha = self.config.alpha  # within, so that a low precision holds what it holds without cosines
        theirs = [gradients_of((alpha or 1.0) * loss, weights, self.scaled) for loss in auxiliary]
        cosines = [cosine(own, gradients) for gradients in theirs]
        if self.config.gradient_cosine == "record" or not auxiliary or not alpha:
            return total, cosines
        gates = [c.clamp(min=0) for c in cosines]
        if self.config.gates == "losses":
            weighed = torch.stack([g * loss for g, loss in zip(gates, auxiliary, strict=True)])
            return primary + alpha * weighed.sum(), cosines
        return with_gradients(total, weights, gated(own, theirs, gates)), cosines
