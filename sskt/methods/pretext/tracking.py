"""Tracking (Wang and Gupta, ICCV 2015): a patch of a video resembles what it becomes more than any patch of
another video.

With D = 1 - cos and M = 0.5: half the mean, over pairs (a, p) of a patch and its successor and over four
patches n of other videos of the batch, of [D(a, p) - D(a, n) + M]_+ + [D(a, p) - D(p, n) + M]_+. In the first
half of the epochs the four are drawn at random; then two are of the four that violate the margin most, and
two of all that do. Draws come from the plan and may repeat. Of several processes, each knows the videos of
its own part of a batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sskt.methods.method import Losses, stacked
from sskt.methods.pretext.pretext import Pretext, PretextConfig
from sskt.students import VGG19, Backbone, Features, Student

N_DRAWS = 7  # of a row: four at random; a pair of the hardest; two of those that violate
_MARGIN, _N_NEGATIVES = 0.5, 4
_GRID, _EMBEDDING = 3, 1024


class Tracking(Pretext):
    """Labels: draws below 2^32, int64 (N, 7). Correct is a row whose successor is nearer than its first patch
    drawn at random; the share of all patches of other videos that are farther away is recorded as `nearer`.
    """

    task = "tracking"
    chance = 50.0
    smallest_batch = 2

    def __init__(self, student: Student, config: PretextConfig, *, channels_last: bool) -> None:
        super().__init__(student, config, channels_last=channels_last)
        self.recorded_names = ("nearer",)

    @classmethod
    def head(cls, backbone: Backbone) -> nn.Module:
        """See `Pretext.head`."""
        cls.require(isinstance(backbone, VGG19) and backbone.task == cls.task)
        return EmbeddingHead(backbone.block_channels[-1])

    def losses(self, pixels: Tensor, labels: Tensor) -> Losses:
        """See `Pretext.losses`; pixels are a patch and its successor, of at least two videos."""
        seen = self._seen(pixels).transpose(1, 2).flatten(0, 1)  # row by row, patch by patch
        vectors = F.normalize(self.student.predict(seen[:, :, None]).float(), dim=1, eps=1e-12)
        pairs = vectors.reshape(len(pixels), 2, -1)
        to_successor = 1 - (pairs[:, 0] * pairs[:, 1]).sum(dim=1)
        to_others = 1 - pairs[:, 0] @ vectors.T
        own = own_patches(len(pixels), vectors.device)
        violations = hinges(to_successor, to_others, 1 - pairs[:, 1] @ vectors.T).masked_fill(own, 0)
        hard = self.training and self.progress >= 0.5
        chosen = choose(violations.detach().masked_fill(own, -1), labels, hard=hard)
        loss = violations.gather(1, chosen).mean() / 2
        nearer = (to_successor.detach()[:, None] < to_others.detach()) & ~own
        first = random_others(labels[:, :1], len(pixels))
        recorded = stacked([nearer.sum() / (~own).sum()], loss).float()
        return Losses(loss, loss.detach(), stacked([], loss), nearer.gather(1, first).sum(), recorded)


class EmbeddingHead(nn.Module):
    """From a patch's last block (N, C, 1, h, w) to a vector (N, 1024), whose length is of no account."""

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(n_channels * _GRID**2, _EMBEDDING), nn.ReLU(), nn.Linear(_EMBEDDING, _EMBEDDING)
        )

    def forward(self, features: Features) -> Tensor:
        """See the class."""
        vectors: Tensor = self.layers(F.adaptive_avg_pool2d(features.blocks[-1][:, :, 0], _GRID).flatten(1))
        return vectors


def own_patches(n: int, device: torch.device) -> Tensor:
    """Which of the 2 n patches of a batch are of a row's own video: bool (n, 2 n)."""
    return torch.arange(n, device=device)[:, None] == torch.arange(2 * n, device=device) // 2


def hinges(to_successor: Tensor, from_first: Tensor, from_second: Tensor) -> Tensor:
    """Both hinges of every row and patch (N, 2 N): D(a, p) (N,), D(a, .) and D(p, .) (N, 2 N)."""
    nearest = to_successor[:, None] + _MARGIN
    return F.relu(nearest - from_first) + F.relu(nearest - from_second)


def random_others(draws: Tensor, n: int) -> Tensor:
    """A patch of another video for each of a row's draws (n, K): int64 (n, K), positions among 2 n."""
    at = draws * (2 * n - 2) >> 32
    return at + 2 * (at >= 2 * torch.arange(n, device=draws.device)[:, None])


def choose(violations: Tensor, draws: Tensor, *, hard: bool) -> Tensor:
    """Four patches of other videos for each row, int64 (N, 4), from the sum of their hinges (N, 2 N), -1 for
    a row's own, and the row's draws (N, 7). `hard`: two of the four largest, two of those above 0.
    """
    n = len(violations)
    if not hard:
        return random_others(draws[:, :_N_NEGATIVES], n)
    hardest = violations.topk(min(_N_NEGATIVES, 2 * n - 2), dim=1).indices
    both = torch.triu_indices(_N_NEGATIVES, _N_NEGATIVES, 1, device=draws.device).T  # each pair of them
    ranks = both[draws[:, 4] * len(both) >> 32] % hardest.shape[1]
    violating = violations > 0
    number = violating.cumsum(dim=1) * violating  # 1, 2, ... of those that violate
    wanted = (draws[:, 5:] * violating.sum(dim=1, keepdim=True) >> 32) + 1
    # where none violates, the first patch stands for all: its hinges are 0
    found = (number[:, None] == wanted[:, :, None]).int().argmax(dim=2)
    return torch.cat([hardest.gather(1, ranks), found], dim=1)
