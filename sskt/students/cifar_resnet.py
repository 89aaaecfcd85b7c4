"""ResNets for small images (He et al., 2016, section 4.2): widths 16-32-64, option-A shortcuts, Kaiming
initialisation.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sskt.students.backbone import Backbone, Features

_WIDTHS = (16, 32, 64)


class CifarResNet(Backbone):
    """ResNet of `depth` = 6n + 2 layers: a 3x3 convolution, then three stages of n residual units."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        n_units, rest = divmod(depth - 2, 6)
        if rest or n_units < 1:
            raise ValueError(f"depth is {depth}, expected 6n + 2 with n >= 1")
        self.block_channels = _WIDTHS
        self.n_features = _WIDTHS[-1]
        self.transfer_width = 64  # the released code's, this network's last width
        self.conv1 = nn.Conv2d(3, _WIDTHS[0], 3, stride=1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        self.layer1 = _stage(16, 16, n_units, stride=1)
        self.layer2 = _stage(16, 32, n_units, stride=2)
        self.layer3 = _stage(32, 64, n_units, stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, x: Tensor) -> Features:
        """From float (N, 3, H, W) to Features of three blocks at H, H/2 and H/4."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        blocks = []
        for stage in (self.layer1, self.layer2, self.layer3):
            x = stage(x)
            blocks.append(x)
        return Features(blocks, x.mean(dim=(2, 3)))


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions and an option-A shortcut: if the shape changes, every second pixel and zeros for
    new channels.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = out_channels - in_channels
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride=1, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """From float (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        residual = F.relu(self.bn1(self.conv1(x)), inplace=True)
        residual = self.bn2(self.conv2(residual))
        residual += self.shortcut(x)
        return F.relu(residual, inplace=True)

    def shortcut(self, x: Tensor) -> Tensor:
        """Option A: no parameters; new channels are split evenly before and after the old ones."""
        if self.new_channels:
            before = self.new_channels // 2
            x = F.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.new_channels - before)
            )
        return x


def _stage(in_channels: int, out_channels: int, n_units: int, *, stride: int) -> nn.Sequential:
    first = ResidualUnit(in_channels, out_channels, stride)
    return nn.Sequential(first, *(ResidualUnit(out_channels, out_channels, 1) for _ in range(n_units - 1)))
