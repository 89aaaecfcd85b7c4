"""The plan is a pure function, draws what its recipe says, and stays the same from version to version."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from pipeline.data.plan import Centre, PadCropFlip, RandomResizedCropFlip
from pipeline.data.plan.plan import philox4x32
from sskt.errors import TargetError

PLANS = [PadCropFlip(32, seed=3), RandomResizedCropFlip(224, seed=3), Centre(224, 256)]


def square(n: int, side: int = 32) -> np.ndarray:
    return np.full((n, 2), side, dtype=np.int32)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_known_answers(counter, key, expected):
    drawn = philox4x32(np.array(counter, dtype=np.uint64)[:, None], key)[:, 0]
    assert tuple(int(word) for word in drawn) == expected


@settings(max_examples=60, deadline=None)
@given(
    plan=st.sampled_from(PLANS),
    view=st.integers(0, 2**31),
    ids=st.lists(st.integers(0, 2**40), min_size=1, max_size=30, unique=True),
    data=st.data(),
)
def test_rows_do_not_depend_on_order_or_neighbours(plan, view, ids, data):
    ids_n = np.array(ids, dtype=np.int64)
    sizes = square(len(ids), 300)
    order = np.array(data.draw(st.permutations(range(len(ids)))))
    whole = plan.rows(view, ids_n, sizes)
    shuffled = plan.rows(view, ids_n[order], sizes[order])
    alone = plan.rows(view, ids_n[:1], sizes[:1])
    assert np.array_equal(whole.windows[order], shuffled.windows)
    assert np.array_equal(whole.flips[order], shuffled.flips)
    assert np.array_equal(whole.windows[:1], alone.windows)
    assert whole.windows.dtype == np.int32
    assert whole.flips.dtype == np.bool_


def test_seed_view_and_id_each_change_the_draw():
    ids, sizes = np.arange(64), square(64)
    base = PadCropFlip(32, seed=0).rows(0, ids, sizes).windows
    assert not np.array_equal(base, PadCropFlip(32, seed=1).rows(0, ids, sizes).windows)
    assert not np.array_equal(base, PadCropFlip(32, seed=2**32).rows(0, ids, sizes).windows)
    assert not np.array_equal(base, PadCropFlip(32, seed=0).rows(1, ids, sizes).windows)
    assert not np.array_equal(base, PadCropFlip(32, seed=0).rows(0, ids + 2**32, sizes).windows)


def test_pad_crop_flip_draws_every_shift_and_flip_equally_often():
    n = 90_000
    rows = PadCropFlip(32, seed=5, pad=4).rows(0, np.arange(n), square(n))
    for axis in (0, 1):
        counts = np.bincount(rows.windows[:, axis] + 4, minlength=9)
        assert len(counts) == 9
        chi_square = ((counts - n / 9) ** 2 / (n / 9)).sum()
        assert chi_square < 26.1  # 0.1 % point with 8 degrees of freedom
    assert abs(rows.flips.mean() - 0.5) < 0.006
    cells = np.bincount((rows.windows[:, 0] + 4) * 9 + rows.windows[:, 1] + 4, minlength=81)
    assert (
        (cells - n / 81) ** 2 / (n / 81)
    ).sum() < 124.8  # 0.1 % point with 80: the two axes are independent
    assert (rows.windows[:, 2:] == 32).all()


def test_random_resized_crop_has_torchvisions_distribution():
    n, height, width = 4000, 256, 341
    rows = RandomResizedCropFlip(224, seed=1).rows(
        0, np.arange(n), np.tile(np.int32([[height, width]]), (n, 1))
    )
    torch.manual_seed(0)
    theirs = np.array([_torchvision_window(height, width) for _ in range(n)])
    for ours, reference in zip(rows.windows.T, theirs.T, strict=True):
        gap = np.abs(
            np.searchsorted(np.sort(ours), np.arange(width + 1), side="right") / n
            - np.searchsorted(np.sort(reference), np.arange(width + 1), side="right") / n
        ).max()
        assert gap < 1.95 * np.sqrt(2 / n)  # Kolmogorov-Smirnov at 0.1 %


def _torchvision_window(height: int, width: int) -> tuple[int, ...]:
    params = v2.RandomResizedCrop(224).make_params([torch.empty(3, height, width)])
    return params["top"], params["left"], params["height"], params["width"]


@settings(max_examples=100, deadline=None)
@given(height=st.integers(1, 3000), width=st.integers(1, 3000), view=st.integers(0, 1000))
def test_resized_and_centre_windows_lie_inside_the_picture(height, width, view):
    sizes = np.array([[height, width]], dtype=np.int32)
    for plan in (RandomResizedCropFlip(224), Centre(224, 256)):
        top, left, crop_height, crop_width = plan.rows(view, np.array([7]), sizes).windows[0]
        assert top >= 0
        assert left >= 0
        assert crop_height >= 1
        assert crop_width >= 1
        assert top + crop_height <= height
        assert left + crop_width <= width


def test_decisions_are_pinned_across_versions():
    ids = np.arange(1000)
    assert PadCropFlip(32, seed=11).rows(3, ids, square(1000)).sha256()[:16] == "778d3eefb12c2d0b"
    sizes = np.tile(np.int32([[375, 500]]), (1000, 1))
    assert RandomResizedCropFlip(224, seed=11).rows(3, ids, sizes).sha256()[:16] == "3c761d4b4faf5670"


def test_an_oblong_picture_is_refused_by_pad_crop_flip():
    with pytest.raises(TargetError, match=r"sample 9: the picture is 30 x 40.*random-resized-crop-flip"):
        PadCropFlip(32).rows(0, np.array([9]), np.array([[30, 40]], dtype=np.int32))


def test_a_negative_view_is_refused():
    with pytest.raises(ValueError, match="view is -1"):
        PadCropFlip(32).rows(-1, np.array([0]), square(1))
