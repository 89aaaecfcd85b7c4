"""What every backbone is, and what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sskt.normalise import IMAGENET_MEAN, IMAGENET_STD
from sskt.students.layers import group_layers

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
    # keys of its head in published files, which a student that starts from one does not copy
    head_keys: tuple[str, ...] = ("fc.", "classifier.", "head.", "heads.", "last_linear.")
    own_prefix: str = ""  # of its keys, which published files do not have
    note: str = ""  # what was assumed when it was made

    def network(self) -> nn.Module:
        """The module whose children are the network's parts: the backbone itself, or what it wraps."""
        return self

    def mapped(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """For maps of where a class is seen: a tensor that `pooled` was computed from, and `pooled`."""
        features = self(x)
        return features.blocks[-1], features.pooled

    def as_maps(self, block: Tensor) -> Tensor:
        """What `mapped` gives, or its gradient, as float (N, C, H, W)."""
        return block

    def layers(self) -> dict[str, int]:
        """For each parameter by name, how early it is: 0 for the first layer."""
        found = group_layers(self.network())
        return {f"{self.own_prefix}{name}": layer for name, layer in found.items()}


def sizes_seen(plan: Mapping[str, Any], student_frames: str | None) -> tuple[tuple[int, ...], ...]:
    """The size of a run's inputs after (N, 3), (H, W) or (D, H, W), from its plan as plain data;
    `student_frames` says what it sees of clips if it reads images.
    """
    side, n_frames = int(plan.get("side_px", 224)), plan.get("n_frames")
    if n_frames is None or student_frames is not None:
        return ((side, side),)
    return ((int(n_frames), side, side),)


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
