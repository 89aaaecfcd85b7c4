"""3D ResNets for clips (Hara et al., 2018), the paper's networks for video; parameters have the names of
3D-ResNets-PyTorch, so its Kinetics checkpoints fit.

Departs from the released code: its option-A shortcut carries no gradient (it copies `.data`), ours does. The
mean to subtract is ActivityNet's, the default of the released code and of the Kinetics checkpoints, or
Kinetics'.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from sskt.normalise import ACTIVITYNET_MEAN, CLIP_MEANS, WHOLE_LEVELS
from sskt.students.backbone import Backbone, Features

_WIDTHS = (64, 128, 256, 512)
_UNITS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}

Shortcut = Literal["A", "B"]


class ResNet3D(Backbone):
    """3D ResNet of `depth` 10, 18, 34 (two 3x3x3 convolutions per unit) or 50 (bottleneck units).

    `shortcut` is used in units that change the shape: "A", every second position and zeros for new channels,
    as in the published Kinetics networks of depth 18 and 34; "B", a 1x1x1 convolution, as in that of depth
    50.
    """

    reads_clips = True
    mean, std = ACTIVITYNET_MEAN, WHOLE_LEVELS

    def __init__(self, depth: int, shortcut: Shortcut) -> None:
        super().__init__()
        expansion = 4 if depth == 50 else 1
        self.block_channels = tuple(width * expansion for width in _WIDTHS)
        self.n_features = self.block_channels[-1]
        self.transfer_width = 1000  # the paper's for 3D networks
        self.conv1 = nn.Conv3d(3, 64, 7, stride=(1, 2, 2), padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        channels = 64
        stages = []
        for width, n_units, stride in zip(_WIDTHS, _UNITS[depth], (1, 2, 2, 2), strict=True):
            units = []
            for unit in range(n_units):
                units.append(_Unit(channels, width, expansion, stride if unit == 0 else 1, shortcut))
                channels = width * expansion
            stages.append(nn.Sequential(*units))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def take_off(self, clip_mean: str) -> None:
        """Expect pixels from which another mean is subtracted, one of `CLIP_MEANS`."""
        self.mean = CLIP_MEANS[clip_mean]

    def forward(self, x: Tensor) -> Features:
        """From float (N, 3, D, H, W) to Features of four blocks, at H/4 and D/2 to H/32 and D/16."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        # torch's CUDA kernel is deterministic only with return_indices, and before 2.15 not even then
        x, _ = F.max_pool3d(x, kernel_size=3, stride=2, padding=1, return_indices=True)
        blocks = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            blocks.append(x)
        return Features(blocks, x.mean(dim=(2, 3, 4)))


class _Unit(nn.Module):
    """Two 3x3x3 convolutions, or with `expansion` 4 a bottleneck of 1x1x1, 3x3x3 and 1x1x1."""

    def __init__(self, in_channels: int, width: int, expansion: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        out_channels = width * expansion
        bottleneck = expansion > 1
        self.conv1 = _convolution(in_channels, width, 1 if bottleneck else 3, 1 if bottleneck else stride)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = _convolution(width, width, 3, stride if bottleneck else 1)
        self.bn2 = nn.BatchNorm3d(width)
        if bottleneck:
            self.conv3 = _convolution(width, out_channels, 1, 1)
            self.bn3 = nn.BatchNorm3d(out_channels)
        self._bottleneck = bottleneck
        self._stride, self._new_channels = stride, out_channels - in_channels
        self.downsample: nn.Module | None = None
        if shortcut == "B" and (stride > 1 or self._new_channels):
            self.downsample = nn.Sequential(
                _convolution(in_channels, out_channels, 1, stride), nn.BatchNorm3d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        if self._bottleneck:
            out = self.bn3(self.conv3(F.relu(out, inplace=True)))
        out += self._shortcut(x)
        return F.relu(out, inplace=True)

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.downsample is not None:
            y: Tensor = self.downsample(x)
            return y
        if self._stride > 1:
            x = x[:, :, :: self._stride, :: self._stride, :: self._stride]
        return F.pad(x, (0, 0, 0, 0, 0, 0, 0, self._new_channels)) if self._new_channels else x


def _convolution(in_channels: int, out_channels: int, kernel: int, stride: int) -> nn.Conv3d:
    return nn.Conv3d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)
