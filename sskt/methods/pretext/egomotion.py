"""Ego-motion (Agrawal et al., ICCV 2015): were two frames taken close to each other in time?

The original predicts how a camera has moved between two frames, of which KITTI knows the truth and videos of
actions do not. Graph distillation (Zhang and Peng, 2018) states the task as above, and that is what is
trained: one encoder for both frames, and a small network that looks at their maps side by side.
"""

from __future__ import annotations

from torch import Tensor, nn

from sskt.methods.method import Losses
from sskt.methods.pretext.pretext import Pretext
from sskt.students import VGG19, Backbone, Features


class Egomotion(Pretext):
    """Labels: 1 if the frames are close, else 0: int64 (N, 1)."""

    task = "egomotion"
    chance = 50.0

    @classmethod
    def head(cls, backbone: Backbone) -> nn.Module:
        """See `Pretext.head`."""
        cls.require(isinstance(backbone, VGG19) and backbone.task == cls.task)
        return TransformHead(backbone.block_channels[-1])

    def losses(self, pixels: Tensor, labels: Tensor) -> Losses:
        """See `Pretext.losses`; pixels are the two frames."""
        return self.classified(self.student.predict(self._seen(pixels)).float(), labels[:, 0])


class TransformHead(nn.Module):
    """From both frames' last block (N, C, 2, h, w) to the logits of far and close (N, 2): the original's
    TCNN, whose last maps are averaged here.
    """

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(2 * n_channels, 256, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 128, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.answer = nn.Sequential(nn.Linear(128, 500), nn.ReLU(), nn.Dropout(0.5), nn.Linear(500, 2))

    def forward(self, features: Features) -> Tensor:
        """See the class."""
        both = features.blocks[-1].transpose(1, 2).flatten(1, 2)  # one frame's channels, then the other's
        logits: Tensor = self.answer(self.convolutions(both).mean(dim=(2, 3)))
        return logits
