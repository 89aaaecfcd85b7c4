"""What every backbone is, and what it returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from sskt.normalise import IMAGENET_MEAN, IMAGENET_STD


class Features(NamedTuple):
    """The result of a backbone's forward; networks for clips have an axis D after the channels."""

    blocks: list[Tensor]  # the output of each resolution stage: float (N, block_channels[b], H_b, W_b)
    pooled: Tensor  # what heads read, in most networks the mean of the last block: float (N, n_features)


class Backbone(nn.Module):
    """A network without a head, from normalised float (N, 3, H, W), or (N, 3, D, H, W), to Features."""

    block_channels: tuple[int, ...]
    n_features: int
    transfer_width: int  # output width of the transfer module's bottlenecks
    reads_clips: bool = False  # (N, 3, D, H, W) instead of (N, 3, H, W)
    mean: tuple[float, ...] = IMAGENET_MEAN  # of the pixels that it expects, in [0, 1]
    std: tuple[float, ...] = IMAGENET_STD
    conv4: int | None = None  # which block is the layer that graph distillation compares, if one is
    pools_last_block: bool = True  # whether `pooled` is the mean of the last block
    # keys of its head in published files, which a student that starts from one does not copy
    head_keys: tuple[str, ...] = ("fc.", "classifier.", "head.", "heads.", "last_linear.")


def frames_seen(backbone: Backbone, pixels: Tensor) -> Tensor:
    """What a backbone sees of a batch, uint8 (N, 3, H, W) or clips (N, 3, D, H, W): of a clip, a network that
    reads images sees the centre frame, D // 2, as image sources do.
    """
    if pixels.ndim == 5 and not backbone.reads_clips:
        return pixels[:, :, pixels.shape[2] // 2]
    return pixels
