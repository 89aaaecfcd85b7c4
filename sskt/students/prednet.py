"""PredNet (Lotter et al., ICLR 2017), which predicts the next frame of a clip: the fourth teacher of graph
distillation (Zhang and Peng, IJCAI 2018).

Four layers, whose top one has 256 channels here, as the paper's distillation layer needs, and 192 in the
authors' code. Weights start with torch's defaults. The gates' hard sigmoid is Keras', as in that code:
clip(0.2 v + 0.5, 0, 1), where torch's has a slope of 1/6.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sskt.students.backbone import Backbone, Features

_CHANNELS, _SMALL_CHANNELS = (3, 48, 96, 256), (3, 8, 16, 32)
_STRIDE = 2  # neighbouring frames at 25 a second hardly differ


class PredNetState(NamedTuple):
    """One tensor for each layer l of a network of channels c, float (N, ., H / 2^l, W / 2^l)."""

    representations: list[Tensor]  # R: c channels
    cells: list[Tensor]  # C, of the LSTM: c
    errors: list[Tensor]  # E, positive and negative: 2 c


class PredNet(Backbone):
    """R and A have `block_channels`. It reads every second frame of a clip, and its blocks are R of the four
    layers after the last of those, (N, C, 1, H / 2^l, W / 2^l); `pooled` is the mean of the top one.

    Sides are multiples of 8. `small` (ours, for tests) has fewer channels.
    """

    reads_clips = True
    conv4 = 3
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # pixels in [0, 1], which the lowest layer predicts

    def __init__(self, *, small: bool = False) -> None:
        super().__init__()
        self.block_channels = channels = _SMALL_CHANNELS if small else _CHANNELS
        self.n_features = channels[-1]
        self.transfer_width = 1000  # the paper's for 3D networks
        above = (*channels[1:], 0)
        # the four gates of a layer at once: input, forget, output and the cell's candidate
        self.gates = nn.ModuleList(
            _conv(2 * c + c + up, 4 * c) for c, up in zip(channels, above, strict=True)
        )
        self.predictions = nn.ModuleList(_conv(c, c) for c in channels)
        self.targets = nn.ModuleList(_conv(2 * c, up) for c, up in zip(channels[:-1], above, strict=False))

    def forward(self, x: Tensor) -> Features:
        """From float (N, 3, D, H, W) to Features. Raises ValueError for a side that is no multiple of 8."""
        for last in self.steps(x[:, :, ::_STRIDE]):
            state = last
        blocks = [r.unsqueeze(2) for r in state.representations]
        return Features(blocks, blocks[-1].mean(dim=(2, 3, 4)))

    def steps(self, frames: Tensor) -> Iterator[PredNetState]:
        """The state after each of the frames, float (N, 3, F, H, W) in [0, 1], from one of zeros."""
        scale = 2 ** (len(self.block_channels) - 1)
        height, width = frames.shape[-2:]
        if height % scale or width % scale:
            raise ValueError(f"PredNet reads sides that are multiples of {scale}, not {height} x {width} px")
        sides = [(height >> layer, width >> layer) for layer in range(len(self.block_channels))]
        shapes = list(zip(self.block_channels, sides, strict=True))
        zeros = [frames.new_zeros(len(frames), channels, *side) for channels, side in shapes]
        state = PredNetState(zeros, zeros, [torch.cat([zero, zero], dim=1) for zero in zeros])
        for frame in frames.unbind(dim=2):
            state = self.step(frame, state)
            yield state

    def step(self, frame: Tensor, state: PredNetState) -> PredNetState:
        """Look at one frame, float (N, 3, H, W) in [0, 1]: first R from the top layer down, by what is known
        of the frames before, then errors from the bottom up.
        """
        n_layers = len(self.block_channels)
        representations, cells = list(state.representations), list(state.cells)
        for layer in reversed(range(n_layers)):
            seen = [state.representations[layer], state.errors[layer]]
            if layer + 1 < n_layers:
                seen.append(F.interpolate(representations[layer + 1], scale_factor=2, mode="nearest"))
            i, f, o, candidate = self.gates[layer](torch.cat(seen, dim=1)).chunk(4, dim=1)
            cells[layer] = _hard_sigmoid(f) * cells[layer] + _hard_sigmoid(i) * candidate.tanh()
            representations[layer] = _hard_sigmoid(o) * cells[layer].tanh()
        errors = []
        target = frame
        for layer in range(n_layers):
            predicted = F.relu(self.predictions[layer](representations[layer]))
            if layer == 0:
                predicted = predicted.clamp(max=1)  # a pixel's largest value
            errors.append(torch.cat([F.relu(predicted - target), F.relu(target - predicted)], dim=1))
            if layer + 1 < n_layers:
                target = F.max_pool2d(F.relu(self.targets[layer](errors[layer])), 2)
        return PredNetState(representations, cells, errors)


def _hard_sigmoid(v: Tensor) -> Tensor:
    return (0.2 * v + 0.5).clamp(0, 1)


def _conv(n_in: int, n_out: int) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=1)
