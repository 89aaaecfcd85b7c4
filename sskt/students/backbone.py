"""What every backbone is, and what it returns."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sskt.normalise import IMAGENET_MEAN, IMAGENET_STD

_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}  # by a tensor's axes


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


def to_channels_last(module: nn.Module) -> None:
    """Lay out every kernel of a network channels last, 2D and 3D ones alike, in place."""
    for weight in (*module.parameters(), *module.buffers()):
        if weight.ndim in _LAYOUTS:
            weight.data = weight.data.contiguous(memory_format=_LAYOUTS[weight.ndim])


def input_layout(module: nn.Module, *, reads_clips: bool) -> torch.memory_format:
    """The layout of inputs of a network in channels last. A network with 2D kernels takes frames out of its
    clips itself, which are as they come.
    """
    if not reads_clips:
        return torch.channels_last
    has_2d = any(weight.ndim == 4 for weight in module.parameters())
    return torch.contiguous_format if has_2d else torch.channels_last_3d
