"""Tracking: squares that are followed, and the triplets of patches, against plain recomputations."""

import numpy as np
import pytest
import torch
from test_sskt_pretext_tasks import SIDE, learn, open_task, tiny  # noqa: F401 - a fixture
from torch import nn

from sskt.methods.pretext import tracking
from sskt.methods.pretext.tracker import candidates, follow
from sskt.methods.pretext.tracking import choose, hinges, own_patches, random_others


def moving_square(way, *, n=16, background=0.0):
    """A textured square of 32 px over a flat or textured background: grey (n, 64, 96), and its corners."""
    rng = np.random.default_rng(0)
    texture = rng.uniform(0, 255, (32, 32))
    frames = np.full((n, 64, 96), 100.0) + background * rng.uniform(-50, 50, (64, 96))
    start = np.where(np.array(way) >= 0, 1, [31, 62])
    corners = [tuple((start + t * np.array(way)).tolist()) for t in range(n)]
    for frame, (top, left) in zip(frames, corners, strict=True):
        frame[top : top + 32, left : left + 32] = texture
    return torch.from_numpy(frames), corners


@pytest.mark.parametrize("way", [(2, 0), (-2, -4), (1, 3), (0, 4)])
@pytest.mark.parametrize("background", [0.0, 1.0])
def test_a_textured_square_is_followed_to_the_pixel(way, background):
    frames, corners = moving_square(way, background=background)
    ends, lowest = follow(frames, torch.tensor([corners[0]]))
    assert tuple(ends[0].tolist()) == corners[-1]
    assert lowest[0] > 0.99


def test_what_is_flat_or_jumps_is_lost():
    frames, corners = moving_square((1, 0), n=4)
    flat = torch.full((4, 64, 96), 100.0)
    assert follow(flat, torch.tensor([[5, 5]]))[1][0] < 0
    jumped = frames.clone()
    jumped[2] = torch.from_numpy(np.random.default_rng(1).uniform(0, 255, (64, 96)))
    assert follow(jumped, torch.tensor([corners[0]]))[1][0] < 0
    assert follow(frames, torch.empty(0, 2, dtype=torch.int64))[0].shape == (0, 2)


def test_a_match_is_the_largest_correlation_of_a_plain_search():
    rng = np.random.default_rng(0)
    now, after = rng.uniform(0, 255, (2, 24, 30))
    for corner in ((0, 0), (12, 18), (5, 9)):
        best = (-2.0, (0, 0))
        template = now[corner[0] : corner[0] + 12, corner[1] : corner[1] + 12].ravel()
        for down in range(-6, 7):
            for right in range(-6, 7):
                top, left = corner[0] + down, corner[1] + right
                if 0 <= top <= 12 and 0 <= left <= 18:
                    window = after[top : top + 12, left : left + 12].ravel()
                    best = max(best, (np.corrcoef(template, window)[0, 1], (top, left)))
        from sskt.methods.pretext.tracker import _step

        ends, scores = _step(torch.from_numpy(now), torch.from_numpy(after), torch.tensor([corner]))
        assert tuple(ends[0].tolist()) == best[1]
        assert float(scores[0]) == pytest.approx(best[0], abs=1e-9)


@pytest.mark.parametrize(("share", "kept"), [(0.24, 0), (0.26, 1), (0.74, 1), (0.76, 0)])
def test_squares_are_kept_if_a_quarter_to_three_quarters_of_them_move(share, kept):
    now = torch.zeros(32, 32)
    after = now.clone()
    square = torch.zeros(16 * 16)
    square[: round(share * 256)] = 11.0
    after[:16, :16] = square.reshape(16, 16)
    found = candidates(now, after).tolist()
    assert ([0, 0] in found) == bool(kept)
    after[after > 0] = 9.0  # too little to count
    assert not len(candidates(now, after))


def embeddings(n, seed=0):
    return nn.functional.normalize(
        torch.randn(n, 2, 16, generator=torch.Generator().manual_seed(seed)), dim=2
    )


def draws(n, k=7, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 2**32, (n, k)))


def violations_of(pairs):
    n, every = len(pairs), pairs.flatten(0, 1)
    to_successor = 1 - (pairs[:, 0] * pairs[:, 1]).sum(1)
    found = hinges(to_successor, 1 - pairs[:, 0] @ every.T, 1 - pairs[:, 1] @ every.T)
    return found.masked_fill(own_patches(n, pairs.device), -1)


def test_hinges_are_torchs_triplet_losses_with_the_distance_of_cosines():
    pairs = embeddings(5)
    cosine = nn.CosineSimilarity(dim=-1)
    loss = nn.TripletMarginWithDistanceLoss(
        distance_function=lambda a, b: 1 - cosine(a, b), margin=0.5, reduction="none"
    )
    found = violations_of(pairs)
    for i in range(5):
        for j in range(10):
            if j // 2 == i:
                assert found[i, j] == -1
                continue
            (first, second), negative = pairs[i], pairs[j // 2, j % 2]
            expected = loss(first, second, negative) + loss(second, first, negative)
            torch.testing.assert_close(found[i, j], expected)


@pytest.mark.parametrize("n", [2, 3, 9])
def test_patches_at_random_are_of_other_videos_and_each_as_often(n):
    found = random_others(draws(n, 4000), n)
    for row in range(n):
        values, counts = found[row].unique(return_counts=True)
        assert values.tolist() == [j for j in range(2 * n) if j // 2 != row]
        assert (counts - 4000 / len(values)).abs().max() < 5 * np.sqrt(4000 / len(values))


@pytest.mark.parametrize("n", [2, 4, 12])
def test_hard_patches_are_those_of_a_plain_selection(n):
    violations, drawn = violations_of(embeddings(n)), draws(n)
    found = choose(violations, drawn, hard=True)
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    for row in range(n):
        order = sorted((j for j in range(2 * n) if j // 2 != row), key=lambda j: -float(violations[row, j]))
        hardest = order[:4]
        ranks = pairs[int(drawn[row, 4]) * 6 >> 32]
        expected = [hardest[rank % len(hardest)] for rank in ranks]
        violating = [j for j in range(2 * n) if violations[row, j] > 0]
        expected += [violating[draw * len(violating) >> 32] for draw in drawn[row, 5:].tolist()]
        assert found[row].tolist() == expected


def test_where_nothing_violates_nothing_is_lost():
    pairs = nn.functional.one_hot(torch.arange(4), 16).float()[:, None].repeat(1, 2, 1)
    violations = violations_of(pairs)
    chosen = choose(violations, draws(4), hard=True)
    assert violations.clamp(min=0).gather(1, chosen).sum() == 0


def batch_of(rng):
    """Patches of bars, each at one height in both patches of its video."""

    def batch(n):
        pixels = rng.integers(0, 60, (n, 3, 2, SIDE, SIDE))
        for row, at in enumerate(rng.permutation(np.resize(np.arange(SIDE - 2), n))):
            pixels[row, :, :, at : at + 2] += 180
        labels = rng.integers(0, 2**32, (n, tracking.N_DRAWS))
        return torch.from_numpy(pixels.astype(np.uint8)), torch.from_numpy(labels)

    return batch


@pytest.mark.parametrize("progress", [0.0, 0.5])
def test_the_loss_is_that_of_the_chosen_patches(tiny, progress):  # noqa: F811
    task, (pixels, labels) = open_task("tracking").train(), batch_of(np.random.default_rng(0))(6)
    task.progress = progress
    losses = task(pixels, labels, {})
    patches = task._seen(pixels).transpose(1, 2).flatten(0, 1)[:, :, None]
    vectors = nn.functional.normalize(task.student.predict(patches), dim=1).reshape(6, 2, -1)
    violations = violations_of(vectors)
    chosen = choose(violations.detach(), labels, hard=progress >= 0.5)
    torch.testing.assert_close(losses.total, violations.gather(1, chosen).sum() / (2 * 4 * 6))
    own = violations == -1
    nearer = (1 - (vectors[:, 0] * vectors[:, 1]).sum(1))[:, None] < 1 - vectors[:, 0] @ vectors.flatten(
        0, 1
    ).T
    assert float(losses.recorded[0]) == pytest.approx(float((nearer & ~own).sum() / (~own).sum()))
    first = random_others(labels[:, :1], 6)[:, 0]
    assert int(losses.correct) == int(nearer[torch.arange(6), first].sum())


def test_tracking_is_learnt_and_not_from_patches_of_one_video(tiny):  # noqa: F811
    assert learn(open_task("tracking"), batch_of(np.random.default_rng(0)), 30, lr=0.02) > 85  # untrained: 76

    def all_alike(n):
        pixels, labels = batch_of(np.random.default_rng(0))(n)
        return pixels[:1].expand(n, -1, -1, -1, -1), labels

    assert learn(open_task("tracking"), all_alike, 5, lr=0.02) < 60  # by chance 50
