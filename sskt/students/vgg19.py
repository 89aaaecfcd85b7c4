"""VGG-19 (Simonyan and Zisserman, 2015) with the changes of graph distillation (Zhang and Peng, IJCAI 2018):
a teacher that looks at some frames of a clip, the ones that its pretext task needs.

The paper widens the first two layers to 96 and 128 channels, makes the first kernels 11x11, and gives the
fourth 256 channels; it does not say whether its layers are convolutions or blocks. Here they are blocks.
Batch norm after every convolution is ours, and VGG's hidden layers of 4,096 are left out.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from sskt.students.backbone import Backbone, Features

_WIDTHS, _SMALL_WIDTHS = (96, 128, 256, 256, 512), (12, 16, 32, 32, 64)
_CONVOLUTIONS = (2, 2, 4, 4, 4)  # of each block


def _spread(n_frames: int) -> tuple[int, ...]:
    """The middles of four equal parts of a clip."""
    return tuple((2 * i + 1) * n_frames // 8 for i in range(4))


def _adjacent(n_frames: int) -> tuple[int, ...]:
    """The two frames in the middle."""
    return n_frames // 2 - 1, n_frames // 2


def _centre(n_frames: int) -> tuple[int, ...]:
    return (n_frames // 2,)


# what a pretext task compares: frames to sort, two moments of a moving camera, one patch
VGG19_FRAMES: dict[str, Callable[[int], tuple[int, ...]]] = {
    "sorting": _spread,
    "egomotion": _adjacent,
    "tracking": _centre,
}


class VGG19(Backbone):
    """Five blocks of 2, 2, 4, 4 and 4 convolutions, the same for every frame that `task`, one of
    VGG19_FRAMES, looks at. `pooled` is the mean of the last block over frames and positions.

    `small` (ours, for tests) has an eighth of the channels.
    """

    reads_clips = True
    conv4 = 3

    def __init__(self, task: str, *, small: bool = False) -> None:
        super().__init__()
        self.task, self._frames = task, VGG19_FRAMES[task]
        self.block_channels = _SMALL_WIDTHS if small else _WIDTHS
        self.n_features = self.block_channels[-1]
        self.transfer_width = 1000  # the paper's for 3D networks
        channels = 3
        blocks: list[nn.Sequential] = []
        for width, n in zip(self.block_channels, _CONVOLUTIONS, strict=True):
            layers: list[nn.Module] = []
            for i in range(n):
                kernel = 11 if not blocks and i == 0 else 3
                layers += [nn.Conv2d(channels, width, kernel, padding=kernel // 2), nn.BatchNorm2d(width)]
                layers.append(nn.ReLU(inplace=True))
                channels = width
            blocks.append(nn.Sequential(*layers))
        self.block1, self.block2, self.block3, self.block4, self.block5 = blocks

    def forward(self, x: Tensor) -> Features:
        """From float (N, 3, D, H, W) to Features of five blocks, (N, C, F, ...) for the F frames that are
        looked at, each before its pooling, at H to H/16. Raises ValueError for clips of fewer than F frames.
        """
        picks = self._frames(x.shape[2])
        if len(set(picks)) < len(picks) or min(picks) < 0:
            raise ValueError(f"it looks at {len(picks)} frames of a clip, and this one has {x.shape[2]}")
        n, n_frames = len(x), len(picks)
        y = x[:, :, list(picks)].transpose(1, 2).flatten(0, 1)
        blocks: list[Tensor] = []
        for block in (self.block1, self.block2, self.block3, self.block4, self.block5):
            y = block(nn.functional.max_pool2d(y, 2) if blocks else y)
            blocks.append(y.unflatten(0, (n, n_frames)).transpose(1, 2))
        return Features(blocks, blocks[-1].mean(dim=(2, 3, 4)))
