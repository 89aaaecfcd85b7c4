"""Plain training on the target's own labels: L = L_prim."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sskt.methods.config import LabelConfig
from sskt.methods.method import Losses, Method, Mixture, Parts, n_correct, stacked


class Scratch(Method):
    """A student without sources."""

    Config = LabelConfig

    @classmethod
    def build(cls, config: LabelConfig, parts: Parts) -> Scratch:
        """See `Method.build`."""
        student = parts.student(parts.backbone, {})
        return cls(student, config, channels_last=parts.channels_last)

    def forward(
        self,
        pixels: Tensor,
        labels: Tensor,
        source_logits: Mapping[str, Tensor],  # noqa: ARG002
        mixed: Mixture | None = None,
        mixed_sources: Mixture | None = None,  # noqa: ARG002
    ) -> Losses:
        """See `Method.forward`."""
        logits, _ = self.student(self._seen(pixels))
        primary = self.config.primary(logits, labels, mixed)
        empty = stacked([], primary)
        return Losses(primary, primary.detach(), empty, n_correct(logits, labels), empty)
