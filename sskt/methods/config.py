"""The settings of a method, declared once: whoever has the field reads it, and checks are its own.

A method's own config lies beside it and inherits what it shares with others from here. Logits are taken to
float32 before any loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from sskt.losses import (
    AUXILIARY_LOSSES,
    KD_REDUCTIONS,
    PRIMARY_LOSSES,
    UNLABELLED,
    cosine_distance,
    focal,
    kd_divergence,
    multilabel_bce,
    multilabel_divergence,
    smooth_l1,
    soft_cross_entropy,
    soft_focal,
    weighted_cross_entropy,
)
from sskt.methods.method import MethodConfig, Mixture, of_both, require_choice, require_range

CLASS_WEIGHTS = ("off", "balanced")  # of the primary loss; balanced: each class counts as much as any other


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelConfig(MethodConfig):
    """Of methods that learn the target's own labels by a loss of the user's choice."""

    primary_loss: str = "ce"  # one of sskt.losses.PRIMARY_LOSSES
    label_smoothing: float = 0.0
    class_weights: str = "off"  # one of CLASS_WEIGHTS
    weight_of_class: tuple[float, ...] = ()  # what they are: of ce, the factor of a sample's loss; empty: 1

    def __post_init__(self) -> None:
        """Raises SettingError for a value that no training can have."""
        require_choice("primary_loss", self.primary_loss, PRIMARY_LOSSES)
        require_range("label_smoothing", self.label_smoothing, 0, 1)
        require_choice("class_weights", self.class_weights, CLASS_WEIGHTS)

    def primary(
        self, logits: Tensor, labels: Tensor, mixed: Mixture | None = None, labelled_share: float = 1.0
    ) -> Tensor:
        """L_prim of primary logits (N, C) and labels int64 (N,), or multi-hot (N, C).

        Where only a share of the samples has a label, it is their summed loss divided by labelled_share * N:
        the mean over labelled samples in the long run, and a sum over samples, which ranks can part. A batch
        needs one that has a label.
        """
        loss = of_both(self._primary, logits.float(), labels, mixed)
        if labelled_share == 1:
            return loss
        known = labels != UNLABELLED
        if labels.ndim == 2:
            known = known.any(dim=1)
        return loss * (known.sum() / (labelled_share * len(labels)))

    def _primary(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.primary_loss == "bce":
            return multilabel_bce(logits, labels)
        if self.primary_loss == "focal":
            return focal(logits, labels)
        if self.weight_of_class:
            return weighted_cross_entropy(
                logits, labels, self.weight_of_class, label_smoothing=self.label_smoothing
            )
        return nn.functional.cross_entropy(
            logits, labels, reduction="mean", label_smoothing=self.label_smoothing, ignore_index=UNLABELLED
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TaughtConfig(LabelConfig):
    """Of methods that learn from sources as well."""

    temperature: float = 3.0
    alpha: float = 0.1  # weight of what is learnt from sources

    def __post_init__(self) -> None:
        """Raises RunError for a value that no training can have."""
        LabelConfig.__post_init__(self)
        require_range("temperature", self.temperature, math.ulp(0), math.inf)
        require_range("alpha", self.alpha, 0, math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceConfig(TaughtConfig):
    """Of methods that have an L_aux of sources' logits, or embeddings."""

    aux_loss: str = "ce"  # one of sskt.losses.AUXILIARY_LOSSES
    kd_reduction: str = "mean"  # over batch and classes, as released; or "batchmean"

    def __post_init__(self) -> None:
        """Raises SettingError for a value that no training can have."""
        TaughtConfig.__post_init__(self)
        require_choice("aux_loss", self.aux_loss, AUXILIARY_LOSSES)
        require_choice("kd_reduction", self.kd_reduction, KD_REDUCTIONS)

    def auxiliary(self, logits: Tensor, source_logits: Tensor, mixed: Mixture | None = None) -> Tensor:
        """L_aux of one source: logits and source_logits (N, K), of an embedding its numbers."""
        return of_both(self._auxiliary, logits.float(), source_logits.float(), mixed)

    def distance(self, logits: Tensor, source_logits: Tensor, mixed: Mixture | None = None) -> Tensor:
        """How far primary logits (N, C) are from those of a source of the same classes: L_aux; with several
        labels per image, the divergence of each class's two answers.
        """
        loss = self._multilabel if self.primary_loss == "bce" else self._auxiliary
        return of_both(loss, logits.float(), source_logits.float(), mixed)

    def _auxiliary(self, logits: Tensor, source_logits: Tensor) -> Tensor:
        if self.aux_loss == "ce":
            return soft_cross_entropy(logits, source_logits, temperature=self.temperature)
        if self.aux_loss == "cosine":
            return cosine_distance(logits, source_logits)
        if self.aux_loss == "smooth-l1":
            return smooth_l1(logits, source_logits)
        if self.aux_loss == "focal":
            return soft_focal(logits, source_logits, temperature=self.temperature)
        return kd_divergence(logits, source_logits, temperature=self.temperature, reduction=self.kd_reduction)

    def _multilabel(self, logits: Tensor, source_logits: Tensor) -> Tensor:
        return multilabel_divergence(
            logits, source_logits, temperature=self.temperature, reduction=self.kd_reduction
        )
