"""ImageNet-style ResNets (He et al., 2016): torchvision's own layers, tapped after each of four stages."""

from __future__ import annotations

import torchvision
from torch import Tensor

from sskt.students.backbone import Backbone, Features


class ResNet(Backbone):
    """The torchvision ResNet of `depth` 18, 34 or 50 without `fc`; parameters keep torchvision's names."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        net = torchvision.models.get_model(f"resnet{depth}", weights=None)
        self.n_features = net.fc.in_features
        self.block_channels = tuple(self.n_features // 8 * factor for factor in (1, 2, 4, 8))
        self.transfer_width = 1000  # the paper's for ImageNet-style networks
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4

    def forward(self, x: Tensor) -> Features:
        """From float (N, 3, H, W) to Features of four blocks at H/4, H/8, H/16 and H/32."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        blocks = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            blocks.append(x)
        return Features(blocks, x.mean(dim=(2, 3)))
