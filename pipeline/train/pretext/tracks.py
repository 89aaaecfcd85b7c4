"""What can be followed in a video, for the tracking task: squares, and where they are 15 frames later."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.data import Dataset
from pipeline.train.pretext.grey import grey_frame
from pipeline.train.pretext.per_video import PerVideo
from sskt.methods.pretext.tracker import candidates, follow, square_side

N_FRAMES = 16  # of a track
_SHORT_PX = 64  # of the frames in which squares are followed
_MOST = 8  # tracks of a video, and moments at which they begin


def tracks_of(dataset: Dataset, row: int) -> NDArray[np.int32]:
    """The tracks of a video, int32 (K, 10): first and last frame, then the square in each, (top, left,
    height, width) in pixels of the packed video. At most 8, which begin at up to 8 moments; of each moment
    the steadiest come first. Raises TargetError for a damaged frame.
    """
    n, height, width = dataset.sizes[row].tolist()
    if n < N_FRAMES:
        return np.empty((0, 10), dtype=np.int32)
    begins = np.unique(np.linspace(0, n - N_FRAMES, _MOST).astype(int))
    needed = np.unique(begins[:, None] + np.arange(N_FRAMES)).tolist()
    grey = {number: _grey(dataset, row, number) for number in needed}
    found: list[tuple[int, list[int]]] = []  # rank among those of its moment
    for begin in begins.tolist():
        frames = torch.stack([grey[begin + t] for t in range(N_FRAMES)])
        corners = candidates(frames[0], frames[1])
        ends, scores = follow(frames, corners)
        order = scores.argsort(descending=True, stable=True)
        kept = [i for i in order.tolist() if scores[i] > 0]
        scale, side = min(height, width) / _SHORT_PX, square_side(frames[0])
        for rank, i in enumerate(kept):
            boxes = [_box(at, side, scale, height, width) for at in (corners[i], ends[i])]
            found.append((rank, [begin, begin + N_FRAMES - 1, *boxes[0], *boxes[1]]))
    found.sort(key=lambda track: track[0])
    return np.array([track for _, track in found[:_MOST]], dtype=np.int32).reshape(-1, 10)


def _box(corner: torch.Tensor, side: int, scale: float, height: int, width: int) -> list[int]:
    """A square of small frames in pixels of the video, inside of it."""
    px = int(side * scale)
    top, left = (round(float(v) * scale) for v in corner)
    return [min(top, height - px), min(left, width - px), px, px]


def _grey(dataset: Dataset, row: int, number: int) -> torch.Tensor:
    """A frame in grey levels with a short side of 64: float64 (H, W)."""
    scale = _SHORT_PX / min(dataset.sizes[row, 1:].tolist())
    height, width = (round(v * scale) for v in dataset.sizes[row, 1:].tolist())
    small = grey_frame(dataset, row, number, scale).resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(small, dtype=np.float64))


TRACKS = PerVideo("tracks-1", "tracks", tracks_of)
