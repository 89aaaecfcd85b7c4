"""Frame sorting (Lee et al., ICCV 2017, "OPN"): in which order were four frames taken?

Each frame keeps one of its colour channels, drawn by the plan, so that the network cannot sort by how a lens
disperses colours. Pairs of frames are compared by one shared layer, and a linear layer answers from the six
comparisons. As graph distillation has it (Zhang and Peng, 2018), the comparison is the first fully connected
layer; the released network has one before it, for each frame.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sskt.methods.method import Losses
from sskt.methods.pretext.orders import orders, pairs
from sskt.methods.pretext.pretext import Pretext
from sskt.students import VGG19, Backbone, Features

N_FRAMES = 4
_GRID, _HIDDEN = 3, 512  # positions of a frame that are compared; numbers of a comparison


class Sorting(Pretext):
    """Labels: the class of the order, then each shown frame's channel: int64 (N, 1 + 4)."""

    task = "sorting"
    chance = 100 / len(orders(N_FRAMES))

    @classmethod
    def head(cls, backbone: Backbone) -> nn.Module:
        """See `Pretext.head`."""
        cls.require(isinstance(backbone, VGG19) and backbone.task == cls.task)
        return OrderHead(backbone.block_channels[-1])

    def losses(self, pixels: Tensor, labels: Tensor) -> Losses:
        """See `Pretext.losses`; pixels are the four frames in the order in which they are shown."""
        answer, channels = labels[:, 0], labels[:, 1:]
        return self.classified(
            self.student.predict(self._seen(keep_channel(pixels, channels))).float(), answer
        )


class OrderHead(nn.Module):
    """From the frames' last block (N, C, 4, h, w) to the logits of 12 orders (N, 12)."""

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self._pairs = pairs(N_FRAMES)
        self.compare = nn.Linear(2 * n_channels * _GRID**2, _HIDDEN)
        self.norm = nn.BatchNorm1d(_HIDDEN)
        self.dropout = nn.Dropout(0.5)
        self.answer = nn.Linear(len(self._pairs) * _HIDDEN, len(orders(N_FRAMES)))

    def forward(self, features: Features) -> Tensor:
        """See the class."""
        maps = features.blocks[-1].transpose(1, 2)
        n, n_frames = maps.shape[:2]
        frames = nn.functional.adaptive_avg_pool2d(maps.flatten(0, 1), _GRID).reshape(n, n_frames, -1)
        both = torch.stack([torch.cat([frames[:, i], frames[:, j]], dim=1) for i, j in self._pairs], dim=1)
        compared = self.norm(self.compare(both.flatten(0, 1))).relu()
        logits: Tensor = self.answer(self.dropout(compared).reshape(n, -1))  # pair after pair
        return logits


def keep_channel(pixels: Tensor, channels: Tensor) -> Tensor:
    """Frames (N, 3, F, H, W) with one of their channels, int64 (N, F), in place of all three."""
    which = channels[:, None, :, None, None].expand(-1, 1, -1, *pixels.shape[3:])
    return pixels.gather(1, which).expand(-1, 3, -1, -1, -1)
