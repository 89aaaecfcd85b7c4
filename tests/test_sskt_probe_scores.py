"""Scores of what a source knows, against their definitions and other libraries."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import KNeighborsClassifier

from sskt.probe import agreement, h_score, knn_predictions, leep

N, D, C = 210, 6, 3


@pytest.fixture(scope="module")
def samples():
    """Features float32 (N, D), labels (N,) that they partly explain, folds (N,)."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(N) % C)
    features = rng.standard_normal((C, D))[labels] + rng.standard_normal((N, D))
    return features.astype(np.float32), labels, rng.integers(0, 4, N)


@pytest.mark.parametrize("k", [1, 7, 500])
def test_neighbours_are_scikit_learns_outside_the_own_fold(samples, k):
    features, labels, folds = samples
    expected = np.empty(N, dtype=np.int64)
    for fold in range(4):
        inside = folds != fold
        model = KNeighborsClassifier(min(k, int(inside.sum())), metric="cosine", algorithm="brute")
        expected[~inside] = model.fit(features[inside], labels[inside]).predict(features[~inside])
    found = knn_predictions(features, labels, folds, k=k)
    assert np.array_equal(found, expected)
    queries = np.array([5, 3, 200, 41])
    assert np.array_equal(knn_predictions(features, labels, folds, k=k, queries=queries), found[queries])


def test_leep_is_the_papers_equations(samples, monkeypatch):
    features, labels, _ = samples
    monkeypatch.setattr("sskt.probe.scores._CHUNK", 64)
    logits = (3 * features).astype(np.float16)
    theta = softmax(logits.astype(np.float64), axis=1)
    joint = np.zeros((C, D))  # equation 1 of the paper: the empirical joint distribution of y and z
    for i in range(N):
        joint[labels[i]] += theta[i] / N
    conditional = joint / joint.sum(axis=0)
    expected = np.mean(
        [np.log(sum(conditional[labels[i], z] * theta[i, z] for z in range(D))) for i in range(N)]
    )
    assert leep(logits, labels) == pytest.approx(expected)
    sure = np.eye(C)[labels] * 100  # a source whose classes are the target's
    assert leep(sure.astype(np.float32), labels) == pytest.approx(0, abs=1e-6)
    assert leep(np.zeros((N, 5), np.float32), labels) == pytest.approx(np.log(1 / C), abs=1e-6)


def test_h_score_is_the_papers_equations(samples):
    features, labels, _ = samples
    x = features.astype(np.float64)
    fitted = LedoitWolf().fit(x)
    means = np.stack([x[labels == c].mean(axis=0) for c in range(C)])[labels] - x.mean(axis=0)
    between = means.T @ means / N
    shrunk = (1 - fitted.shrinkage_) * np.trace(np.linalg.inv(fitted.covariance_) @ between)
    assert h_score(features, labels) == pytest.approx(shrunk)
    plain = np.trace(np.linalg.inv(np.cov(x.T, bias=True)) @ between)  # Bao et al., without shrinkage
    assert h_score(features, labels) == pytest.approx(plain, rel=0.15)


def test_h_score_of_noise_in_many_dimensions_is_not_the_best_there_is():
    rng = np.random.default_rng(0)
    labels, noise = np.arange(40) % 4, rng.standard_normal((40, 200)).astype(np.float32)
    known = noise + 4 * rng.standard_normal((4, 200)).astype(np.float32)[labels]
    assert h_score(noise, labels) < 1 < 2.5 < h_score(known, labels) < 3


def test_agreement_is_the_share_of_equal_answers():
    assert agreement(np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2])) == 0.75
