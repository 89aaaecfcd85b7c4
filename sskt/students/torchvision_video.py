"""torchvision's 18-layer networks for clips (Tran et al., 2018): r3d_18, mc3_18 and r2plus1d_18."""

from __future__ import annotations

import torchvision
from torch import Tensor

from sskt.students.backbone import Backbone, Features

TORCH_VIDEO = ("r3d_18", "mc3_18", "r2plus1d_18")


class TorchVideo(Backbone):
    """The torchvision network `name` without `fc`; parameters keep torchvision's names."""

    reads_clips = True
    mean, std = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)  # of its Kinetics-400 weights

    def __init__(self, name: str) -> None:
        super().__init__()
        net = torchvision.models.get_model(name, weights=None)
        self.n_features = net.fc.in_features
        self.block_channels = (64, 128, 256, 512)
        self.transfer_width = 1000  # the paper's for 3D networks
        self.stem = net.stem
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4

    def forward(self, x: Tensor) -> Features:
        """From float (N, 3, D, H, W) to Features of four blocks at H/2, H/4, H/8 and H/16."""
        x = self.stem(x)
        blocks = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            blocks.append(x)
        return Features(blocks, x.mean(dim=(2, 3, 4)))
