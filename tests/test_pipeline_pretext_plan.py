"""Plans of pretext tasks: what they draw, against plain recomputations, and that it never changes."""

import hashlib
from collections import Counter

import numpy as np
import pytest

from pipeline.data.plan import FramePair, FrameSequence, SortedFrames, TrackedPatches
from sskt.methods.pretext.orders import orders

IDS = np.arange(400, dtype=np.int64)


def sizes(*lengths, short=90, long=120):
    return np.array([(lengths[i % len(lengths)], short, long) for i in IDS], dtype=np.int32)


def motion(sizes, moves=lambda t: 1):
    return {
        int(i): np.cumsum([0, *map(moves, range(size[0] - 1))]) for i, size in zip(IDS, sizes, strict=True)
    }


def test_four_frames_of_equal_distance_are_shown_in_the_order_of_their_class():
    of = sizes(4, 7, 20, 300)
    plan = SortedFrames(48, motion=motion(of))
    rows, answers = plan.rows(3, IDS, of), plan.answers(3, IDS, of)
    gaps = Counter()
    for size, frames, answer in zip(of, rows.frames, answers, strict=True):
        in_time = sorted(frames.tolist())
        assert in_time[0] >= 0
        assert in_time[-1] < size[0]
        (gap,) = set(np.diff(in_time).tolist())
        assert gap <= 8
        assert gap >= 3 or gap == (size[0] - 1) // 3
        shown = tuple(in_time.index(frame) for frame in frames)
        assert min(shown, shown[::-1]) == orders(4)[answer[0]]
        if size[0] == 300:
            gaps[gap] += 1
    assert set(gaps) == set(range(3, 9))
    assert set(answers[:, 0].tolist()) == set(range(12))
    assert all(set(channel.tolist()) == {0, 1, 2} for channel in answers[:, 1:].T)


def test_both_directions_of_every_class_are_shown():
    of = sizes(60)
    rows = SortedFrames(48, motion=motion(of)).rows(0, IDS, of)
    shown = {tuple(np.argsort(np.argsort(frames)).tolist()) for frames in rows.frames}
    assert len(shown) == 24


def test_frames_are_moved_within_their_tuples_window_by_a_sixteenth_at_most():
    of = sizes(60)
    plan = SortedFrames(48, motion=motion(of))
    windows = plan.rows(1, IDS, of).windows.astype(int)
    whole = plan._windows(plan._place(1, IDS), of).astype(int)
    assert windows.shape == (len(IDS), 4, 4)
    moved = set()
    for frames, outer in zip(windows, whole, strict=True):
        for top, left, height, width in frames:
            assert height == width == 4 * outer[2] // 5
            down, right = top - outer[0], left - outer[1]
            middle = (outer[2] - height) // 2
            assert abs(down - middle) <= height // 16
            assert abs(right - middle) <= height // 16
            assert down >= 0
            assert down + height <= outer[2]
            assert right >= 0
            assert right + width <= outer[3]
            moved.add((down - middle, right - middle))
        assert len({tuple(frame) for frame in frames}) > 1  # not all alike
    assert len(moved) > 20


def test_starts_follow_motion_and_are_free_where_nothing_moves():
    of = sizes(100)
    late = motion(of, lambda t: int(t >= 80))
    spans = np.sort(SortedFrames(48, motion=late).rows(0, IDS, of).frames, axis=1)
    assert (spans[:, -1] > 80).all()  # every tuple shows some of the motion
    counts = np.zeros(100)
    for first, *_, last in spans:
        counts[first] += 1
        assert late[0][last] > late[0][first]
    still = SortedFrames(48, motion=motion(of, lambda t: 0)).rows(0, IDS, of).frames.min(axis=1)
    assert still.min() < 10
    assert still.max() > 65


def test_a_start_has_the_share_of_its_motion():
    of = sizes(13)  # gaps of 3 and 4: tuples of 10 and of 13 frames
    moves = [1, 0, 0, 5, 0, 0, 0, 0, 0, 0, 9, 3]
    plan = SortedFrames(48, motion=motion(of, lambda t: moves[t]))
    found, expected = Counter(), np.zeros(4)
    for view in range(20):
        for frames in np.sort(plan.rows(view, IDS, of).frames, axis=1):
            if frames[1] - frames[0] == 3:
                found[int(frames[0])] += 1
    for start in range(4):
        expected[start] = sum(moves[start : start + 9])
    n = sum(found.values())
    for start, share in enumerate(expected / expected.sum()):
        assert abs(found[start] / n - share) < 4 * np.sqrt(share * (1 - share) / n)


def test_pairs_are_close_or_not_as_their_label_says():
    of = sizes(9, 12, 16, 250)
    plan = FramePair(48)
    seen, firsts = Counter(), {9: set(), 12: set(), 16: set()}
    for view in range(8):
        rows, answers = plan.rows(view, IDS, of), plan.answers(view, IDS, of)
        for size, (a, b), (close,) in zip(
            of[:, 0].tolist(), rows.frames.tolist(), answers.tolist(), strict=True
        ):
            assert min(a, b) >= 0
            assert max(a, b) < size
            assert a != b
            assert close == (abs(a - b) <= 7)
            seen[close, a < b] += 1
            if not close and size in firsts:
                firsts[size] |= {(a, b)}
            if close and size == 250:
                seen[abs(a - b)] += 1
    assert firsts[9] == {(0, 8), (8, 0)}
    assert firsts[12] == {(a, b) for a in range(12) for b in range(12) if abs(a - b) > 7}
    n = 8 * len(IDS)
    for key in ((0, False), (0, True), (1, False), (1, True)):
        assert abs(seen[key] / n - 0.25) < 4 * np.sqrt(0.25 * 0.75 / n)
    assert all(seen[apart] > 0.5 * n / 4 / 2 / 7 for apart in range(1, 8))


def test_ten_frames_follow_one_another_by_twos_and_by_ones_in_short_videos():
    of = sizes(10, 18, 19, 80)
    rows = FrameSequence(48).rows(0, IDS, of)
    starts = {n: set() for n in (10, 18, 19, 80)}
    for (n, _, _), frames in zip(of.tolist(), rows.frames.tolist(), strict=True):
        step = 2 if n >= 19 else 1
        assert frames == list(range(frames[0], frames[0] + 10 * step, step))
        starts[n].add(frames[0])
    assert starts[10] == starts[19] == {0}
    assert starts[18] == set(range(9))
    assert min(starts[80]) < 5
    assert max(starts[80]) in range(55, 62)
    assert rows.windows.shape == (len(IDS), 4)


@pytest.mark.parametrize(("plan", "n"), [(SortedFrames(48), 4), (FramePair(48), 9), (FrameSequence(48), 10)])
def test_too_short_videos_are_not_usable(plan, n):
    of = sizes(n - 1, n)
    assert plan.usable(IDS, of).tolist() == [i % 2 == 1 for i in range(len(IDS))]


def tracks():
    """One to three for each video, of numbers that are none."""
    return {int(i): np.arange(10 * (1 + i % 3), dtype=np.int32).reshape(-1, 10) for i in IDS}


def test_a_track_is_drawn_of_each_video_that_has_one_and_its_patches_have_windows_of_their_own():
    of, known = sizes(40), tracks()
    known[3] = known[3][:0]
    plan = TrackedPatches(48, tracks=known)
    assert plan.usable(IDS, of).tolist() == [i != 3 for i in range(len(IDS))]
    ids, seen = np.delete(IDS, 3), set()
    for view in range(4):
        rows = plan.rows(view, ids, of[1:])
        for video, frames, windows in zip(ids, rows.frames, rows.windows, strict=True):
            drawn = [*frames.tolist(), *windows.ravel().tolist()]
            assert drawn in known[video].tolist()
            seen.add((video, tuple(drawn)))
    assert len(seen) > 0.8 * sum(map(len, known.values()))
    draws = plan.answers(0, ids, of[1:])
    assert draws.shape == (len(ids), 7)
    assert draws.min() >= 0
    assert 2**31 < draws.max() < 2**32


@pytest.mark.parametrize(
    ("kind", "rows", "answers"),
    [
        (SortedFrames, "34ac120934a3c398", "ad2ca6287a0810b8"),
        (FramePair, "6e6cf82ba8d06569", "1d927adce8fa5b64"),
        (FrameSequence, "ca5fcad1acf961f6", "5a312281df4bd8df"),
        (TrackedPatches, "56d84a59e432e944", "e9a444a8ea735872"),
    ],
)
def test_what_is_drawn_never_changes(kind, rows, answers):
    """A run that was begun before continues with the same examples."""
    of = sizes(40, 90)
    known = {SortedFrames: {"motion": motion(of, lambda t: t % 7)}, TrackedPatches: {"tracks": tracks()}}
    plan = kind(48, seed=5, **known.get(kind, {}))
    drawn = plan.rows(2, IDS, of)
    assert (drawn.sha256()[:16], hash_of(plan.answers(2, IDS, of))) == (rows, answers)
    few = np.array([7, 399, 20])
    again = plan.rows(2, few, of[few])
    for ours, theirs in ((again.windows, drawn.windows), (again.frames, drawn.frames)):
        assert np.array_equal(ours, theirs[few])
    assert np.array_equal(again.flips, drawn.flips[few])


def hash_of(answers):
    return hashlib.sha256(answers.astype("<i8").tobytes()).hexdigest()[:16]
