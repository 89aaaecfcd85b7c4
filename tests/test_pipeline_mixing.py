"""Mixtures are what their papers say, decided by seed, epoch and step alone."""

import numpy as np
import pytest
import torch

from pipeline.data.mixup import Mixing
from sskt.errors import RunError

PIXELS = torch.randint(0, 256, (12, 3, 32, 24), generator=torch.Generator().manual_seed(0)).byte()


def test_mixup_is_the_weighted_sum_of_two_pictures():
    for step in range(20):
        mixed, pairs = Mixing(mixup=0.8)(PIXELS, seed=1, epoch=2, step=step)
        share = float(pairs.share)
        assert 0 <= share <= 1
        for row, partner in enumerate(pairs.partner.tolist()):
            assert partner == (row - 1) % 12
            expected = PIXELS[row].numpy() * share + PIXELS[partner].numpy() * (1 - share)
            assert np.abs(mixed[row].numpy() - expected).max() <= 0.5 + 1e-3


def test_cutmix_swaps_one_window_whose_area_is_what_the_share_says():
    areas = []
    for step in range(30):
        mixed, pairs = Mixing(cutmix=1.0)(PIXELS, seed=1, epoch=2, step=step)
        others = PIXELS[pairs.partner]
        from_other = (mixed != PIXELS).any(dim=1)  # (N, H, W): where anything changed
        assert torch.equal(torch.where(from_other[:, None], others, PIXELS), mixed)
        inside = from_other.any(dim=0)
        rows, columns = inside.any(dim=1).nonzero(), inside.any(dim=0).nonzero()
        area = len(rows) * len(columns)
        assert area == inside.sum(), "one rectangle, the same for every row of the batch"
        assert 1 - float(pairs.share) == pytest.approx(area / (32 * 24), abs=1e-6)
        areas.append(area / (32 * 24))
    assert 0.2 < np.mean(areas) < 0.5  # a uniform share, less what is cut off at the edges


def test_the_same_step_is_mixed_alike_and_others_are_not():
    mixing = Mixing(mixup=1.0, cutmix=1.0)
    first = mixing(PIXELS, seed=3, epoch=1, step=7)
    again = mixing(PIXELS, seed=3, epoch=1, step=7)
    assert torch.equal(first[0], again[0])
    assert first[1].share == again[1].share
    shares = {
        float(mixing(PIXELS, seed=seed, epoch=epoch, step=step)[1].share)
        for seed, epoch, step in ((3, 1, 8), (3, 2, 7), (4, 1, 7), (3, 1, 7))
    }
    assert len(shares) == 4


def test_both_together_take_turns():
    kinds = set()
    for step in range(40):
        mixed, _ = Mixing(mixup=1.0, cutmix=1.0)(PIXELS, seed=0, epoch=0, step=step)
        changed = (mixed != PIXELS).any(dim=1).float().mean()
        kinds.add(bool(changed > 0.9))
    assert kinds == {True, False}


def test_off_by_default_and_never_negative():
    assert not Mixing()
    assert Mixing(mixup=0.1)
    with pytest.raises(RunError, match=r"mixup is -1, and cutmix|mixup is -1 and cutmix 0"):
        Mixing(mixup=-1)
