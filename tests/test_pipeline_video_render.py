"""Clip plans against their definition, and clips against frames that are cut one by one."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from videos import make_folder

from pipeline import api
from pipeline.api import Paths, open_dataset
from pipeline.data.datasets.video.dataset import first_frames, frames_dataset
from pipeline.data.plan import (
    CentreClip,
    CornerClip,
    EveryClip,
    PickedFrames,
    RandomResizedCropFlip,
    plan_from,
)
from pipeline.data.render import open_renderer
from pipeline.runtime.execution import Execution
from sskt.errors import RunError, TargetError

CPU = torch.device("cpu")
IDS = np.arange(5000)


def sizes(n_frames, height, width, n=5000):
    return np.tile(np.array([[n_frames, height, width]], dtype=np.int32), (n, 1))


def test_corner_clips_are_drawn_from_every_start_scale_and_corner_alike():
    rows = CornerClip(112, n_frames=16).rows(3, IDS, sizes(40, 128, 171))
    starts, counts = np.unique(rows.frames[:, 0], return_counts=True)
    assert starts.tolist() == list(range(25)), "the last start is 40 - 16"
    assert counts.min() > 140
    sides = sorted({int(128 * 2 ** (-k / 4)) for k in range(5)})
    found, counts = np.unique(rows.windows[:, 2], return_counts=True)
    assert found.tolist() == sides == [64, 76, 90, 107, 128]
    assert counts.min() > 900
    np.testing.assert_array_equal(rows.windows[:, 2], rows.windows[:, 3])
    for side in sides:
        of_side = rows.windows[rows.windows[:, 2] == side]
        corners = {(0, 0), (0, 171 - side), (128 - side, 0), (128 - side, 171 - side)}
        corners.add(((128 - side) // 2, (171 - side) // 2))
        assert {(int(t), int(left)) for t, left in of_side[:, :2]} == corners
    assert 0.47 < rows.flips.mean() < 0.53


@given(
    n_frames=st.integers(1, 80),
    height=st.integers(8, 300),
    width=st.integers(8, 300),
    length=st.integers(1, 32),
    stride=st.integers(1, 5),
    view=st.integers(0, 10**6),
)
@settings(max_examples=100, deadline=None)
def test_a_clip_is_consecutive_frames_that_exist_and_short_videos_begin_anew(
    n_frames, height, width, length, stride, view
):
    shape = sizes(n_frames, height, width, 20)
    for plan in (CornerClip(16, n_frames=length, stride=stride), CentreClip(16, length, stride, n_clips=3)):
        rows = plan.rows(view, IDS[:20], shape)
        assert rows.frames.shape == (20, length)
        span = (length - 1) * stride + 1
        for clip in rows.frames:
            expected = [(int(clip[0]) + i * stride) % n_frames for i in range(length)]
            assert clip.tolist() == expected
            assert clip[0] <= max(0, n_frames - span)
        top, left, high, wide = rows.windows.T
        assert (rows.windows >= 0).all()
        assert (top + high <= height).all()
        assert (left + wide <= width).all()
        assert (rows.windows[:, 2:] >= 1).all()


def test_a_row_depends_on_seed_view_and_id_alone():
    plan, shape = CornerClip(32, seed=5), sizes(90, 128, 171)
    whole = plan.rows(2, IDS, shape)
    some = np.array([4000, 7, 99])
    part = plan.rows(2, IDS[some], shape[some])
    np.testing.assert_array_equal(part.frames, whole.frames[some])
    np.testing.assert_array_equal(part.windows, whole.windows[some])
    for other in (CornerClip(32, seed=6).rows(2, IDS, shape), plan.rows(3, IDS, shape)):
        assert (other.frames[:, 0] == whole.frames[:, 0]).mean() < 0.1
    assert whole.sha256() != plan.rows(2, IDS, sizes(91, 128, 171)).sha256()
    assert plan_from(plan.to_dict(), "here") == plan
    assert plan_from(CentreClip(8, n_clips=4).to_dict(), "here") == CentreClip(8, n_clips=4)


def test_evaluation_clips_reach_from_the_first_frame_to_the_last():
    plan = CentreClip(112, n_frames=16, n_clips=3)
    frames = [plan.rows(view, IDS[:1], sizes(100, 128, 171, 1)).frames[0] for view in range(3)]
    assert [f[0] for f in frames] == [0, 42, 84]
    assert frames[2][-1] == 99
    one = CentreClip(112, n_frames=16).rows(0, IDS[:1], sizes(100, 128, 171, 1))
    assert one.frames[0, 0] == 42
    assert one.windows[0].tolist() == [0, 21, 128, 128]


def released_test_clips(n_frames, length):
    """As the released test list is made, counting from 1: a clip every `length` frames before the last one,
    and a short one padded with its own frames from its start.
    """
    clips = []
    for first in range(1, n_frames, length):
        frames = list(range(first, min(n_frames + 1, first + length)))
        padded = list(frames)
        for frame in padded:  # grows
            if len(padded) >= length:
                break
            padded.append(frame)
        clips.append([frame - 1 for frame in padded])
    return clips


@pytest.mark.parametrize("n_frames", [2, 5, 16, 17, 18, 32, 33, 40, 47, 95])
def test_every_clip_is_the_released_test_scripts(n_frames):
    plan, shape = EveryClip(112), sizes(n_frames, 128, 171, 1)
    expected = released_test_clips(n_frames, 16)
    assert plan.n_clips_of(shape).tolist() == [len(expected)]
    found = [plan.rows(view, IDS[:1], shape) for view in range(len(expected))]
    assert [rows.frames[0].tolist() for rows in found] == expected
    assert all(rows.windows[0].tolist() == [0, 21, 128, 128] and not rows.flips[0] for rows in found)


def test_every_clip_with_a_stride_takes_its_frames_apart_and_none_beyond_the_end():
    plan, shape = EveryClip(8, n_frames=3, stride=2), sizes(10, 8, 8, 1)
    assert plan.n_clips_of(shape).tolist() == [2]
    frames = [plan.rows(view, IDS[:1], shape).frames[0].tolist() for view in (0, 1)]
    assert frames == [[0, 2, 4], [6, 8, 6]]
    assert EveryClip(8).n_clips_of(sizes(1, 8, 8, 1)).tolist() == [1]
    assert EveryClip(8).rows(0, IDS[:1], sizes(1, 8, 8, 1)).frames[0].tolist() == [0] * 16


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    root = make_folder(folder / "videos")
    paths = Paths(folder, folder / "stores")
    api.prepare(f"videofolder:{root}", paths=paths)
    return open_dataset(f"videofolder:{root}", "train", paths=paths)


def render(dataset, plan, batches, backend="torch", view=1):
    renderer = open_renderer(dataset, plan, Execution(CPU, renderer=backend, threads=2), batch_size=8)
    with closing(renderer), closing(renderer.render(view, batches)) as drawn:
        return [np.ascontiguousarray(clip.numpy()) for clip in drawn]


def test_a_clip_is_its_frames_cut_resized_and_mirrored_one_by_one(dataset):
    plan = CornerClip(24, n_frames=6, stride=3)
    positions = np.array([5, 0, 3])
    (drawn,) = render(dataset, plan, [positions])
    assert drawn.shape == (3, 3, 6, 24, 24)
    rows = plan.rows(1, dataset.ids[positions], dataset.sizes[positions])
    frames, firsts = frames_dataset(dataset), first_frames(dataset)
    for n, position in enumerate(positions):
        top, left, height, width = rows.windows[n]
        for d, number in enumerate(rows.frames[n]):
            image = frames.pixels_of(int(firsts[position] + number))
            window = Image.fromarray(image[top : top + height, left : left + width])
            expected = np.asarray(window.resize((24, 24), Image.Resampling.BILINEAR))
            expected = expected[:, ::-1] if rows.flips[n] else expected
            difference = np.abs(drawn[n, :, d].transpose(1, 2, 0).astype(int) - expected)
            assert difference.max() <= 1, (n, d)


@pytest.mark.parametrize("backend", ["torch", "dali"])
def test_clips_are_the_same_whatever_the_batches(dataset, backend):
    if backend == "dali":
        pytest.importorskip("nvidia.dali")
    plan, every = CornerClip(24, n_frames=6), np.arange(8)
    (whole,) = render(dataset, plan, [every], backend)
    parts = render(dataset, plan, [every[[6, 1]], every[[0]], every[[7, 2, 3, 4, 5]]], backend)
    np.testing.assert_array_equal(np.concatenate(parts), whole[[6, 1, 0, 7, 2, 3, 4, 5]])
    some = PickedFrames(plan, (1, 3))
    (frames,) = render(dataset, some, [every], backend)
    np.testing.assert_array_equal(frames, whole[:, :, [1, 3]])


def test_renderers_agree_to_a_grey_level_on_average(dataset):
    pytest.importorskip("nvidia.dali")
    plan = CornerClip(24, n_frames=6)
    (ours,), (dalis,) = (render(dataset, plan, [np.arange(8)], backend) for backend in ("torch", "dali"))
    assert np.abs(ours.astype(int) - dalis).mean() < 1


def test_a_plan_for_pictures_draws_no_videos(dataset):
    with pytest.raises(RunError, match="is a plan for pictures"):
        open_renderer(dataset, RandomResizedCropFlip(24), Execution(CPU, threads=1), batch_size=2)


@pytest.mark.parametrize("backend", ["torch", "dali"])
def test_a_frame_that_was_damaged_after_packing_is_named(dataset, backend):
    if backend == "dali":
        pytest.importorskip("nvidia.dali")
    frames = frames_dataset(dataset)
    path = Path(dataset.name_of(0))
    with path.open("r+b") as file:
        original = file.read(200)
        file.seek(0)
        file.write(b"\0" * 200)
    damaged = r"0\.avi\.frames frame 0: is damaged since it was packed"
    try:
        with pytest.raises(TargetError, match=damaged):
            frames.take(np.arange(len(frames))).pixels_of(0)
        with pytest.raises(TargetError, match=damaged):
            render(dataset, CornerClip(24, n_frames=20), [np.array([i]) for i in (4, 3, 0, 1)], backend)
    finally:
        with path.open("r+b") as file:
            file.write(original)
