"""What every pretext task has in common. Its labels are the plan's draws: the right answer, and whatever else
was drawn for the task, so that a loss is a function of pixels and draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from sskt.errors import RunError
from sskt.methods.method import Losses, Method, MethodConfig, Mixture, Parts, n_correct, stacked
from sskt.students import Backbone, Encoder


@dataclass(frozen=True, slots=True, kw_only=True)
class PretextConfig(MethodConfig):
    """No task has settings of its own."""


class Pretext(Method):
    """An encoder and the task it learns. `forward` is given the draws as labels, int64 (N, K), and counts as
    correct the rows that are answered rightly, in training and on the videos that are held out.
    """

    Config = PretextConfig
    exports = "encoder"
    several_labels = False
    mixes = False
    compiles = False
    reads_unlabelled = True
    task: ClassVar[str]  # one of sskt.students.PRETEXTS
    chance: ClassVar[float | None]  # percent of right answers of one who guesses; None: nobody can
    smallest_batch: ClassVar[int] = 1  # videos that it needs at a time

    @classmethod
    def build(cls, config: PretextConfig, parts: Parts) -> Pretext:
        """See `Method.build`. Raises RunError for another network than the task's."""
        encoder = Encoder(parts.backbone, cls.head(parts.backbone))
        if parts.freeze_until is not None:
            encoder.freeze_until(parts.freeze_until)
        return cls(encoder, config, channels_last=parts.channels_last)

    def forward(
        self,
        pixels: Tensor,
        labels: Tensor,
        source_logits: Mapping[str, Tensor],  # noqa: ARG002
        mixed: Mixture | None = None,  # noqa: ARG002
        mixed_sources: Mixture | None = None,  # noqa: ARG002
    ) -> Losses:
        """See `Method.forward`. A task has no sources, and nothing of it is mixed."""
        return self.losses(pixels, labels)

    def losses(self, pixels: Tensor, labels: Tensor) -> Losses:
        """The losses of a batch: pixels uint8 (N, 3, F, H, W), the task's frames, and draws int64 (N, K)."""
        raise NotImplementedError

    @staticmethod
    def classified(logits: Tensor, answer: Tensor) -> Losses:
        """Cross-entropy of logits (N, C) with the right answers, int64 (N,)."""
        loss = nn.functional.cross_entropy(logits, answer, reduction="mean")
        empty = stacked([], loss)
        return Losses(loss, loss.detach(), empty, n_correct(logits, answer), empty)

    @classmethod
    def head(cls, backbone: Backbone) -> nn.Module:
        """The head of the task for a backbone. Raises RunError if it is not the task's."""
        raise NotImplementedError

    @classmethod
    def require(cls, fits: bool) -> None:
        """Raise RunError unless the backbone is the task's."""
        if not fits:
            name = "prednet" if cls.task == "prediction" else f"vgg19-{cls.task}"
            raise RunError(
                f"the pretext task {cls.task} is for --model {name} or {name}-small, this is another network"
            )
