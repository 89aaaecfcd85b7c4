"""Follow a square of a video by block matching: in each frame to where it looks most like it did in the last.

Wang and Gupta (ICCV 2015) choose what to follow by improved dense trajectories, and follow it with a
correlation filter (KCF). This is plainer: it needs no library.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

REACH_PX = 6  # a square moves by this much from frame to frame at most, each way
_LEAST_SCORE = 0.6  # correlation of a square with its successor
_CHANGED = 10.0  # grey levels from one frame to the next by which a pixel moves
_MOVING = (0.25, 0.75)  # fractions of its pixels that move in a square that is followed


def candidates(now: Tensor, after: Tensor) -> Tensor:
    """Squares of half the short side that move and do not fill themselves with what moves: int64 (C, 2), top
    and left, from a grid with steps of half a square. Frames are grey levels (H, W).
    """
    side = square_side(now)
    step = max(1, side // 2)
    height, width = now.shape
    tops, lefts = range(0, height - side + 1, step), range(0, width - side + 1, step)
    corners = [(top, left) for top in tops for left in lefts]
    moving = (after - now).abs() > _CHANGED
    shares = [float(moving[top : top + side, left : left + side].double().mean()) for top, left in corners]
    kept = [at for at, share in zip(corners, shares, strict=True) if _MOVING[0] <= share <= _MOVING[1]]
    return torch.tensor(kept, dtype=torch.int64).reshape(-1, 2)


def follow(frames: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
    """Where squares of half the short side, given by their corners (C, 2) in the first of the grey frames (T,
    H, W), are in the last: corners int64 (C, 2), and the lowest correlation on the way (C,), below 0 for a
    square that was lost.
    """
    lowest = torch.ones(len(corners), dtype=torch.float64)
    for now, after in zip(frames[:-1].double(), frames[1:].double(), strict=True):
        if not len(corners):
            break
        corners, scores = _step(now, after, corners)
        lowest = torch.minimum(lowest, torch.where(scores < _LEAST_SCORE, -1.0, scores))
    return corners, lowest


def square_side(frame: Tensor) -> int:
    """Side of the squares that are followed in a frame (H, W)."""
    return min(frame.shape) // 2


def _step(now: Tensor, after: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
    """The best places of the squares in the next frame, and their correlations there."""
    side, reach = square_side(now), REACH_PX
    templates = torch.stack([now[top : top + side, left : left + side] for top, left in corners.tolist()])
    templates = templates - templates.mean(dim=(1, 2), keepdim=True)
    padded = F.pad(after, (reach,) * 4)
    around = torch.stack(
        [
            padded[top : top + side + 2 * reach, left : left + side + 2 * reach]
            for top, left in corners.tolist()
        ]
    )
    products = F.conv2d(around[None], templates[:, None], groups=len(corners))[0]
    n = side * side
    means = F.avg_pool2d(around[None], side, stride=1)[0]
    variances = n * (F.avg_pool2d(around[None] ** 2, side, stride=1)[0] - means**2)
    energy = variances * templates.square().sum(dim=(1, 2))[:, None, None]
    scores = torch.where(energy > 1e-3, products / energy.clamp(min=1e-3).sqrt(), -1.0)  # flat ones: none
    moves = torch.arange(-reach, reach + 1)
    height, width = now.shape
    for axis, room in ((0, height - side), (1, width - side)):
        at = corners[:, axis, None] + moves
        inside = (at >= 0) & (at <= room)
        scores = scores.masked_fill(~(inside[:, :, None] if axis == 0 else inside[:, None]), -2.0)
    best = scores.flatten(1).argmax(dim=1)
    down, right = best // len(moves) - reach, best % len(moves) - reach
    return corners + torch.stack([down, right], dim=1), scores.flatten(1).gather(1, best[:, None])[:, 0]
