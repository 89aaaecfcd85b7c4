"""torchvision's MobileNetV2, DenseNet121 and VGG16 (with batch norm), tapped after each resolution stage.

Parameters keep torchvision's names, so a student can start from its ImageNet weights. VGG16 is its
convolutions with a global average, as is usual for small images, without torchvision's two hidden layers of
4,096.
"""

from __future__ import annotations

import torchvision
from torch import Tensor, nn

from sskt.students.backbone import Backbone, Features

_TRANSFER_WIDTH = 1000  # the paper's for ImageNet-style networks


class _Staged(Backbone):
    """`features` of a torchvision network; each child named in `taps` ends a stage."""

    features: nn.Sequential

    def __init__(self, name: str, taps: dict[str, int]) -> None:
        """`taps` maps a child's name to its number of output channels."""
        super().__init__()
        self.features = torchvision.models.get_model(name, weights=None).features
        self._taps = tuple(taps)
        self.block_channels = tuple(taps.values())
        self.n_features = self.block_channels[-1]
        self.transfer_width = _TRANSFER_WIDTH

    def forward(self, x: Tensor) -> Features:
        """From float (N, 3, H, W) to Features of every stage."""
        blocks = []
        for name, child in self.features.named_children():
            x = child(x)
            if name in self._taps:
                blocks.append(x)
        return Features(blocks, x.mean(dim=(2, 3)))


class MobileNetV2(_Staged):
    """Five stages (Sandler et al., 2018), at H/2 to H/32."""

    def __init__(self) -> None:
        super().__init__("mobilenet_v2", {"1": 16, "3": 24, "6": 32, "13": 96, "18": 1280})


class VGG16(_Staged):
    """Five stages (Simonyan and Zisserman, 2015), each ending with its pooling, at H/2 to H/32."""

    def __init__(self) -> None:
        super().__init__("vgg16_bn", {"6": 64, "13": 128, "23": 256, "33": 512, "43": 512})


class DenseNet121(_Staged):
    """Four dense blocks (Huang et al., 2017), at H/4 to H/32; the last is followed by its norm and ReLU."""

    def __init__(self) -> None:
        super().__init__(
            "densenet121", {"denseblock1": 256, "denseblock2": 512, "denseblock3": 1024, "norm5": 1024}
        )

    def forward(self, x: Tensor) -> Features:
        """From float (N, 3, H, W) to Features of four blocks."""
        blocks, _ = super().forward(x)
        last = blocks[-1].relu()
        return Features([*blocks[:-1], last], last.mean(dim=(2, 3)))
