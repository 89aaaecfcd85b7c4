"""Plans of pretext tasks (graph distillation, Zhang and Peng, 2018): which frames of a video are shown,
through which windows, and the right answer. Each draws one example of a video and view.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.data.plan.clips import corner_windows
from pipeline.data.plan.plan import (
    ALGORITHM,
    Draws,
    Flips,
    Ids,
    PlanRows,
    Sizes,
    Windows,
    below,
    draws_of,
    flips_of,
)
from sskt.methods.pretext.orders import orders

_N_SCALES = 5
_PLACE, _WHICH, _JITTER = 64, 65, 66  # purposes of draws: window and moment, answer, one for each frame
_CLOSE = 7  # frames: egomotion's largest distance of a close pair
_GAPS = (3, 8)  # frames: sorting's smallest and largest distance of two of its four


@dataclass(frozen=True, slots=True)
class PretextPlan:
    """See `Plan`. What depends on a video's pixels (where it moves) is a mapping by id, and no part of what
    the plan is compared by.
    """

    side_px: int
    seed: int = 0
    flip: float = 0.5
    kind: ClassVar[str]
    n_frames: ClassVar[int]
    min_frames: ClassVar[int]  # of a video that it can show

    def rows(self, view: int, ids: Ids, sizes: Sizes) -> PlanRows:
        """See `Plan.rows`; sizes are (N, 3)."""
        raise NotImplementedError

    def answers(self, view: int, ids: Ids, sizes: Sizes) -> NDArray[np.int64]:
        """The labels of the task (see `sskt.methods.pretext`) for the same rows: (N, K)."""
        raise NotImplementedError

    def usable(self, ids: Ids, sizes: Sizes) -> NDArray[np.bool_]:  # noqa: ARG002
        """Which videos it can show: bool (N,)."""
        long_enough: NDArray[np.bool_] = sizes[:, 0] >= self.min_frames
        return long_enough

    @property
    def lacking(self) -> str:
        """What is wrong with the videos that it cannot show, for messages."""
        return f"are shorter than the {self.min_frames} frames that {self.kind} needs"

    def to_dict(self) -> dict[str, Any]:
        """See `Plan.to_dict`."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.compare}
        return {"kind": self.kind, "algorithm": ALGORITHM, **own}

    def _windows(self, draws: Draws, sizes: Sizes) -> Windows:
        """One window for all frames of a row, at a corner or the centre, from the first two draws: (N, 4)."""
        return corner_windows(draws[:, 0], draws[:, 1], sizes, _N_SCALES)

    def _place(self, view: int, ids: Ids) -> Draws:
        return draws_of(self.seed, ids, view, _PLACE)

    def _flips(self, view: int, ids: Ids) -> Flips:
        return flips_of(self.seed, ids, view, self.flip)


@dataclass(frozen=True, slots=True)
class SortedFrames(PretextPlan):
    """Four frames of equal distance in a drawn order, each moved a little, so that borders do not give the
    order away (Lee et al., ICCV 2017).

    The distance is 3 to 8 frames, less in a video that is too short for it. The start is drawn with a
    probability in proportion to how much moves between the first and the last frame. Each frame shows four
    fifths of the tuple's window, around its centre, moved by up to a sixteenth of that each way. Departs
    from the released code, which chooses frames and windows by optical flow: windows do not follow motion.
    """

    # by id, int64 (T,): how much has moved before each frame, see `pipeline.train.pretext.motion`
    motion: Mapping[int, NDArray[np.int64]] = field(default_factory=dict, compare=False, repr=False)
    kind: ClassVar[str] = "sorting"
    n_frames: ClassVar[int] = 4
    min_frames: ClassVar[int] = 4

    def rows(self, view: int, ids: Ids, sizes: Sizes) -> PlanRows:
        """See `Plan.rows`; frames are in the order in which they are shown, windows (N, 4, 4)."""
        place = self._place(view, ids)
        gaps = np.minimum(_GAPS[0] + below(place[:, 3], _GAPS[1] - _GAPS[0] + 1), (sizes[:, 0] - 1) // 3)
        starts = self._starts(place[:, 2], ids, gaps)
        frames = starts[:, None] + gaps[:, None] * self._order(view, ids)
        windows = self._jittered(view, ids, self._windows(place, sizes))
        return PlanRows(ids, windows, self._flips(view, ids), frames.astype(np.int32))

    def answers(self, view: int, ids: Ids, sizes: Sizes) -> NDArray[np.int64]:  # noqa: ARG002
        """The class of the order, and the channel of each shown frame: (N, 5)."""
        which = draws_of(self.seed, ids, view, _WHICH)
        classes = below(which[:, 0], len(orders(self.n_frames)))
        channels = [below(self._jitter(view, ids, frame)[:, 2], 3) for frame in range(self.n_frames)]
        return np.stack([classes, *channels], axis=1)

    def _order(self, view: int, ids: Ids) -> NDArray[np.int64]:
        """The place in time of each shown frame, 0 to 3: (N, 4)."""
        which = draws_of(self.seed, ids, view, _WHICH)
        shown = np.array(orders(self.n_frames))[below(which[:, 0], len(orders(self.n_frames)))]
        backwards = below(which[:, 1], 2) == 1
        return np.where(backwards[:, None], shown[:, ::-1], shown)

    def _starts(self, draws: Draws, ids: Ids, gaps: NDArray[np.int64]) -> NDArray[np.int64]:
        starts = np.empty(len(ids), dtype=np.int64)
        for row, (video, draw, gap) in enumerate(
            zip(ids.tolist(), draws.tolist(), gaps.tolist(), strict=True)
        ):
            moved = self.motion[video]
            weights = moved[3 * gap :] - moved[: len(moved) - 3 * gap]
            if not weights.any():  # nothing moves anywhere
                weights = np.ones_like(weights)
            total = weights.cumsum()
            starts[row] = np.searchsorted(total, int(draw) * int(total[-1]) >> 32, side="right")
        return starts

    def _jittered(self, view: int, ids: Ids, windows: Windows) -> Windows:
        shape = np.maximum(1, 4 * windows[:, 2:] // 5)
        middle = windows[:, :2] + (windows[:, 2:] - shape) // 2
        most = shape // 16
        found = []
        for frame in range(self.n_frames):
            moved = below(self._jitter(view, ids, frame)[:, :2], 2 * most + 1) - most
            found.append(np.concatenate([middle + moved, shape], axis=1))
        return np.stack(found, axis=1).astype(np.int32)

    def _jitter(self, view: int, ids: Ids, frame: int) -> Draws:
        """Draws of one shown frame: down, right, channel."""
        return draws_of(self.seed, ids, view, _JITTER + frame)


@dataclass(frozen=True, slots=True)
class FramePair(PretextPlan):
    """Two frames through one window, close in time or not, half and half (Agrawal et al., ICCV 2015: within
    7 frames is close). Their order is drawn too.

    A close pair's distance is drawn from 1 to 7; of a pair that is not close, the first frame is drawn from
    those that have one farther away, then the other from all of these. Frames are counted and not seconds,
    as videos have different rates.
    """

    kind: ClassVar[str] = "egomotion"
    n_frames: ClassVar[int] = 2
    min_frames: ClassVar[int] = _CLOSE + 2

    def rows(self, view: int, ids: Ids, sizes: Sizes) -> PlanRows:
        """See `Plan.rows`."""
        place, which = self._place(view, ids), draws_of(self.seed, ids, view, _WHICH)
        n = sizes[:, 0].astype(np.int64)
        pairs = np.where(
            self.answers(view, ids, sizes) == 1,
            _close_pairs(place[:, 2], which[:, 1], n),
            _far_pairs(place[:, 2], which[:, 1], n),
        )
        swapped = below(which[:, 2], 2) == 1
        frames = np.where(swapped[:, None], pairs[:, ::-1], pairs).astype(np.int32)
        return PlanRows(ids, self._windows(place, sizes), self._flips(view, ids), frames)

    def answers(self, view: int, ids: Ids, sizes: Sizes) -> NDArray[np.int64]:  # noqa: ARG002
        """1 for a close pair, 0 for another: (N, 1)."""
        return below(draws_of(self.seed, ids, view, _WHICH)[:, :1], 2)


def _close_pairs(first: Draws, distance: Draws, n: Ids) -> NDArray[np.int64]:
    apart = 1 + below(distance, _CLOSE)
    begin = below(first, n - apart)
    return np.stack([begin, begin + apart], axis=1)


def _far_pairs(first: Draws, other: Draws, n: Ids) -> NDArray[np.int64]:
    """The frames of a video of `n` that have one more than 7 away are the first and the last n - 8, which
    overlap in long ones.
    """
    n_ends = n - _CLOSE - 1
    at = below(first, np.minimum(n, 2 * n_ends))
    begin = np.where((n < 2 * n_ends) | (at < n_ends), at, at - n_ends + _CLOSE + 1)
    before = np.maximum(0, begin - _CLOSE)
    after = np.maximum(0, n_ends - begin)
    chosen = below(other, before + after)
    return np.stack([begin, np.where(chosen < before, chosen, chosen - before + begin + _CLOSE + 1)], axis=1)


@dataclass(frozen=True, slots=True)
class FrameSequence(PretextPlan):
    """Ten frames through one window, every second one, as neighbours hardly differ at 25 frames a second
    (ours: KITTI, of which Lotter et al., ICLR 2017, show ten, has ten a second). In a video too short for it
    they are neighbours.
    """

    kind: ClassVar[str] = "prediction"
    n_frames: ClassVar[int] = 10
    min_frames: ClassVar[int] = 10

    def rows(self, view: int, ids: Ids, sizes: Sizes) -> PlanRows:
        """See `Plan.rows`."""
        place, n = self._place(view, ids), sizes[:, 0].astype(np.int64)
        steps = np.where(n >= 2 * self.n_frames - 1, 2, 1)
        starts = below(place[:, 2], n - (self.n_frames - 1) * steps)
        frames = starts[:, None] + steps[:, None] * np.arange(self.n_frames)
        return PlanRows(ids, self._windows(place, sizes), self._flips(view, ids), frames.astype(np.int32))

    def answers(self, view: int, ids: Ids, sizes: Sizes) -> NDArray[np.int64]:  # noqa: ARG002
        """None is needed: zeros (N, 1)."""
        return np.zeros((len(ids), 1), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class TrackedPatches(PretextPlan):
    """A patch of a video and what became of it: one of the video's tracks, drawn, each patch through its own
    window (Wang and Gupta, ICCV 2015).
    """

    # by id, int32 (K, 10), see `pipeline.train.pretext.tracks`
    tracks: Mapping[int, NDArray[np.int32]] = field(default_factory=dict, compare=False, repr=False)
    kind: ClassVar[str] = "tracking"
    n_frames: ClassVar[int] = 2
    min_frames: ClassVar[int] = 16

    def rows(self, view: int, ids: Ids, sizes: Sizes) -> PlanRows:  # noqa: ARG002
        """See `Plan.rows`; windows (N, 2, 4)."""
        counts = np.array([len(self.tracks[video]) for video in ids.tolist()], dtype=np.int64)
        which = below(self._place(view, ids)[:, 2], counts)
        rows = [self.tracks[video][at] for video, at in zip(ids.tolist(), which.tolist(), strict=True)]
        chosen = np.array(rows, dtype=np.int32).reshape(-1, 10)
        return PlanRows(ids, chosen[:, 2:].reshape(-1, 2, 4), self._flips(view, ids), chosen[:, :2])

    def answers(self, view: int, ids: Ids, sizes: Sizes) -> NDArray[np.int64]:  # noqa: ARG002
        """Draws below 2^32, by which patches of other videos are chosen: (N, 7)."""
        draws = [draws_of(self.seed, ids, view, purpose) for purpose in (_WHICH, _JITTER)]
        return np.concatenate(draws, axis=1)[:, :7].astype(np.int64)

    def usable(self, ids: Ids, sizes: Sizes) -> NDArray[np.bool_]:  # noqa: ARG002
        """See `PretextPlan.usable`: videos that have a track."""
        return np.array([len(self.tracks[video]) > 0 for video in ids.tolist()], dtype=np.bool_)

    @property
    def lacking(self) -> str:
        """See `PretextPlan.lacking`."""
        return f"show nothing that moves and can be followed for {self.min_frames} frames"


PRETEXT_PLANS: dict[str, type[PretextPlan]] = {
    plan.kind: plan for plan in (SortedFrames, FramePair, FrameSequence, TrackedPatches)
}
