"""The transfer module of SSKT (section 3, supplement): an auxiliary head that reads every block, not only the
last.

Blocks are the resolution stages of the backbone (layer1 .. layerN), as in figure 3 of the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class TransferModule(nn.Module):
    """One bottleneck per block, global average pool, mean over the blocks, Linear.

    blocks: one float (N, block_channels[b], H_b, W_b) each, or (N, block_channels[b], D_b, H_b, W_b) with
    `reads_clips`, whose convolutions are 3D; returns (N, n_classes). Training-time only.
    """

    def __init__(
        self, block_channels: Sequence[int], width: int, n_classes: int, *, reads_clips: bool = False
    ) -> None:
        super().__init__()
        self.bottlenecks = nn.ModuleList(
            _bottleneck(channels, width, reads_clips) for channels in block_channels
        )
        self.linear = nn.Linear(width, n_classes)

    def forward(self, blocks: Sequence[Tensor]) -> Tensor:
        """Logits for the source's classes."""
        pooled = [
            bottleneck(block).flatten(start_dim=2).mean(dim=2)
            for bottleneck, block in zip(self.bottlenecks, blocks, strict=True)
        ]
        logits: Tensor = self.linear(torch.stack(pooled).mean(dim=0))
        return logits


def _bottleneck(in_channels: int, width: int, reads_clips: bool) -> nn.Sequential:
    """Kernel 1, kernel 3 with stride 2, kernel 1; middle width = width // 2."""
    middle = width // 2
    return nn.Sequential(
        *_conv_bn_relu(in_channels, middle, kernel=1, stride=1, reads_clips=reads_clips),
        *_conv_bn_relu(middle, middle, kernel=3, stride=2, reads_clips=reads_clips),
        *_conv_bn_relu(middle, width, kernel=1, stride=1, reads_clips=reads_clips),
    )


def _conv_bn_relu(
    in_channels: int, out_channels: int, *, kernel: int, stride: int, reads_clips: bool
) -> list[nn.Module]:
    convolution, norm = (nn.Conv3d, nn.BatchNorm3d) if reads_clips else (nn.Conv2d, nn.BatchNorm2d)
    return [
        convolution(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False),
        norm(out_channels),
        nn.ReLU(inplace=True),
    ]
