"""Plans for clips: F frames of a video through one window (docs/method.md, section 6)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.plan.plan import (
    ALGORITHM,
    CLIP,
    Draws,
    Ids,
    PlanRows,
    Sizes,
    Windows,
    below,
    draws_of,
    flips_of,
)

_N_CORNERS = 5  # centre, top left, top right, bottom left, bottom right


@dataclass(frozen=True, slots=True)
class CornerClip:
    """Multi-scale corner crop: a random start, a square at a corner or the centre, a random flip.

    The square's side is the video's short side times 2^(-k / 4), k from 0 to `n_scales` - 1. A video shorter
    than the clip loops.

    Departs from the released code, which never draws the last possible start.
    """

    side_px: int
    seed: int = 0
    n_frames: int = 16
    stride: int = 1
    n_scales: int = 5
    flip: float = 0.5

    def rows(self, view: int, ids: Ids, sizes: Sizes) -> PlanRows:
        """See `Plan.rows`; sizes are (N, 3)."""
        draws = draws_of(self.seed, ids, view, CLIP)
        starts = below(draws[:, 0], _last_starts(sizes, self.n_frames, self.stride) + 1)
        windows = corner_windows(draws[:, 1], draws[:, 2], sizes, self.n_scales)
        flips = flips_of(self.seed, ids, view, self.flip)
        return PlanRows(ids, windows, flips, _frames(starts, sizes, self.n_frames, self.stride))

    def to_dict(self) -> dict[str, Any]:
        """See `Plan.to_dict`."""
        return {"kind": "corner-clip", "algorithm": ALGORITHM, **asdict(self)}


@dataclass(frozen=True, slots=True)
class CentreClip:
    """The evaluation views: the central square of the short side; view v is the v-th of `n_clips` clips,
    evenly spaced from the video's first to its last (if there is one, the middle).
    """

    side_px: int
    n_frames: int = 16
    stride: int = 1
    n_clips: int = 1

    def rows(self, view: int, ids: Ids, sizes: Sizes) -> PlanRows:
        """See `Plan.rows`; sizes are (N, 3)."""
        last = _last_starts(sizes, self.n_frames, self.stride)
        starts = last // 2 if self.n_clips == 1 else last * (view % self.n_clips) // (self.n_clips - 1)
        flips = np.zeros(len(ids), dtype=np.bool_)
        return PlanRows(
            ids, _central_squares(sizes), flips, _frames(starts, sizes, self.n_frames, self.stride)
        )

    def to_dict(self) -> dict[str, Any]:
        """See `Plan.to_dict`."""
        return {"kind": "centre-clip", **asdict(self)}


@dataclass(frozen=True, slots=True)
class EveryClip:
    """The released test script's views: the central square of the short side; view v is the v-th of a video's
    consecutive, non-overlapping clips.

    A last clip that is too short loops over its own frames; a single left-over frame is dropped, as released.
    `n_clips_of` counts a video's clips; views beyond that count repeat the first ones.
    """

    side_px: int
    n_frames: int = 16
    stride: int = 1

    def n_clips_of(self, sizes: Sizes) -> NDArray[np.int64]:
        """Number of clips per video: int64 (N,), at least 1; sizes are (N, 3)."""
        return np.maximum(1, -(-(sizes[:, 0].astype(np.int64) - 1) // (self.n_frames * self.stride)))

    def rows(self, view: int, ids: Ids, sizes: Sizes) -> PlanRows:
        """See `Plan.rows`; sizes are (N, 3)."""
        starts = view % self.n_clips_of(sizes) * self.n_frames * self.stride
        n_available = np.clip(-(-(sizes[:, 0] - starts) // self.stride), 1, self.n_frames)  # per clip
        steps = np.arange(self.n_frames)[None, :] % n_available[:, None]
        frames = (starts[:, None] + self.stride * steps).astype(np.int32)
        flips = np.zeros(len(ids), dtype=np.bool_)
        return PlanRows(ids, _central_squares(sizes), flips, frames)

    def to_dict(self) -> dict[str, Any]:
        """See `Plan.to_dict`."""
        return {"kind": "every-clip", **asdict(self)}


@dataclass(frozen=True, slots=True)
class PickedFrames:
    """Selected frames of another plan's clips, so that only the frames a source reads are decoded."""

    plan: CornerClip | CentreClip | EveryClip
    picks: tuple[int, ...]  # positions in the clip

    @property
    def side_px(self) -> int:
        """See `Plan.side_px`."""
        return self.plan.side_px

    @property
    def n_frames(self) -> int:
        """Number of frames drawn."""
        return len(self.picks)

    def rows(self, view: int, ids: Ids, sizes: Sizes) -> PlanRows:
        """See `Plan.rows`."""
        rows = self.plan.rows(view, ids, sizes)
        assert rows.frames is not None  # noqa: S101 - plans of clips have frames
        return PlanRows(rows.ids, rows.windows, rows.flips, rows.frames[:, list(self.picks)])

    def to_dict(self) -> dict[str, Any]:
        """See `Plan.to_dict`: that of the whole clip, since picking frames changes no pixel."""
        return self.plan.to_dict()


def centre_frame(plan: CornerClip | CentreClip | EveryClip) -> PickedFrames:
    """What a network that reads images sees of a plan's clips: frame n_frames // 2 alone."""
    return PickedFrames(plan, (plan.n_frames // 2,))


def corner_windows(scale: Draws, corner: Draws, sizes: Sizes, n_scales: int) -> Windows:
    """Multi-scale corner crops (N, 4) from two draws; see `CornerClip`."""
    scales = 2.0 ** (-below(scale, n_scales) / 4)
    crop = np.maximum(1, (sizes[:, 1:].min(axis=1) * scales).astype(np.int64))  # rounded down, as released
    room = sizes[:, 1:] - crop[:, None]
    at = below(corner, _N_CORNERS)
    anchors = np.stack([room[:, 0] * (at >= 3), room[:, 1] * (at % 2 == 0)], axis=1)
    anchors = np.where((at == 0)[:, None], room // 2, anchors)
    return np.column_stack([anchors, crop, crop]).astype(np.int32)


def _central_squares(sizes: Sizes) -> Windows:
    """Centred square windows (N, 4) whose side is the short side."""
    crop = sizes[:, 1:].min(axis=1)
    shape = np.stack([crop, crop], axis=1)
    return np.concatenate([(sizes[:, 1:] - shape) // 2, shape], axis=1).astype(np.int32)


def _last_starts(sizes: Sizes, n_frames: int, stride: int) -> NDArray[np.int64]:
    """The last frame at which a clip can begin and still fit: int64 (N,), 0 for shorter videos."""
    span = (n_frames - 1) * stride + 1
    return np.maximum(0, sizes[:, 0].astype(np.int64) - span)


def _frames(starts: NDArray[np.int64], sizes: Sizes, n_frames: int, stride: int) -> NDArray[np.int32]:
    """Frame numbers of each clip: int32 (N, n_frames), wrapping around at the video's end."""
    frames = starts[:, None] + stride * np.arange(n_frames)
    return (frames % sizes[:, :1]).astype(np.int32)
