"""AlexNet (Krizhevsky et al., 2012) as torchvision builds it: the student of graph distillation (Zhang and
Peng, IJCAI 2018).

torchvision's has no local response norm, and 64, 192, 384, 256, 256 channels. Its fourth convolution has the
256 channels that the paper's distillation layer needs; Krizhevsky's has 384 there.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torchvision
from torch import Tensor, nn

from sskt.students.backbone import Backbone, Features

_WIDTHS, _HIDDEN = (64, 192, 384, 256, 256), 4096
_SMALL_WIDTHS, _SMALL_HIDDEN = (8, 24, 48, 32, 32), 256
_BLOCKS = ("1", "4", "7", "9", "11")  # the ReLU after each convolution


class AlexNet(Backbone):
    """torchvision's network without its last layer; parameters keep torchvision's names.

    `pooled` is the second hidden layer, of 4,096, after ReLU. `small` (ours, for tests) has an eighth of the
    channels and hidden layers of 256. Images have at least 63 px.
    """

    conv4 = 3
    head_keys = ("classifier.6.",)  # the other fully connected layers belong to the backbone

    def __init__(self, *, small: bool = False) -> None:
        super().__init__()
        with torch.device("meta") if small else nullcontext():
            net = torchvision.models.get_model("alexnet", weights=None)
        self.block_channels, self.n_features = _WIDTHS, _HIDDEN
        self.features, self.avgpool, self.classifier = net.features, net.avgpool, net.classifier[:-1]
        if small:
            self.block_channels, self.n_features = _SMALL_WIDTHS, _SMALL_HIDDEN
            _narrow(self.features, self.classifier)
        self.transfer_width = 1000  # the paper's for ImageNet-style networks

    def forward(self, x: Tensor) -> Features:
        """From float (N, 3, H, W) to Features of five blocks, at H/4, H/8 and three times H/16."""
        blocks = []
        for name, child in self.features.named_children():
            x = child(x)
            if name in _BLOCKS:
                blocks.append(x)
        return Features(blocks, self.classifier(self.avgpool(x).flatten(start_dim=1)))


def alexnet_grid(side_px: int) -> int:
    """The side of the fourth layer's maps of images of `side_px`."""
    side = (side_px - 7) // 4 + 1
    for _ in range(2):  # poolings before it
        side = (side - 3) // 2 + 1
    return side


def _narrow(features: nn.Sequential, classifier: nn.Sequential) -> None:
    """Replace each layer that has weights by a smaller one with fresh weights."""
    channels, widths = 3, iter(_SMALL_WIDTHS)
    for name, child in features.named_children():
        if isinstance(child, nn.Conv2d):
            width = next(widths)
            kernel, stride, padding = (
                int(pair[0]) for pair in (child.kernel_size, child.stride, child.padding)
            )
            setattr(features, name, nn.Conv2d(channels, width, kernel, stride, padding))
            channels = width
    classifier[1] = nn.Linear(channels * 6 * 6, _SMALL_HIDDEN)
    classifier[4] = nn.Linear(_SMALL_HIDDEN, _SMALL_HIDDEN)
