"""A linear probe is scikit-learn's logistic regression, and what it says of a labelled sample has not seen
that sample's label.
"""

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_predict

from sskt.errors import RunError
from sskt.probe import (
    calibrate,
    cross_fit,
    expected_calibration_error,
    fit_linear,
    folds_of,
    probe_features,
)

N, D, C = 240, 12, 4
NAMES = tuple("abcd")


@pytest.fixture(scope="module")
def samples():
    """Features float32 (2, N, D) in two views, labels (N,) that they half explain, and folds."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(C), N // C)
    centres = rng.standard_normal((C, D))
    features = centres[labels] + 1.5 * rng.standard_normal((2, N, D))
    keys = rng.permutation(N).astype(np.uint64)
    return torch.from_numpy(features).float(), labels, folds_of(labels, keys, NAMES)


def multi_hot_of(features: torch.Tensor) -> np.ndarray:
    truth = (features[0, :, :3].numpy() > 0.3).astype(np.int8)
    truth[::7, 1] = -1  # not counted
    return np.concatenate([truth, np.zeros((N, 1), np.int8)], axis=1)  # and a class that none has


@pytest.mark.parametrize("strength", [1e-3, 1e-2, 1.0])
def test_a_probe_is_scikit_learns(samples, strength):
    features, labels, _ = samples
    ours = fit_linear(features[0], torch.from_numpy(labels), C, strength=strength)
    theirs = LogisticRegression(C=strength, max_iter=5000, tol=1e-8).fit(features[0].numpy(), labels)
    expected = theirs.decision_function(features[0].numpy())
    found = ours.logits(features[0]).numpy()
    found -= found.mean(axis=1, keepdims=True)  # a softmax knows no shift
    assert np.abs(found - (expected - expected.mean(axis=1, keepdims=True))).max() < 0.02


def test_each_of_several_labels_is_a_problem_of_its_own(samples):
    features, _, _ = samples
    truth = multi_hot_of(features)
    ours = fit_linear(features[0], torch.from_numpy(truth), C, strength=0.01).logits(features[0]).numpy()
    for column in range(3):
        counted = truth[:, column] >= 0
        x, y = features[0].numpy(), truth[:, column]
        theirs = LogisticRegression(C=0.01, max_iter=5000, tol=1e-8).fit(x[counted], y[counted])
        assert np.abs(ours[:, column] - theirs.decision_function(x)).max() < 0.02
    assert (ours[:, 3] == -30).all()


def test_a_class_without_a_sample_is_never_named(samples):
    features, labels, _ = samples
    some = labels != 2
    probe = fit_linear(features[0][some], torch.from_numpy(labels[some]), C, strength=0.1)
    logits = probe.logits(features[0]).numpy()
    assert (logits[:, 2] == -30).all()
    theirs = LogisticRegression(C=0.1, max_iter=5000, tol=1e-8).fit(features[0][some].numpy(), labels[some])
    assert (logits.argmax(axis=1) == theirs.predict(features[0].numpy())).mean() > 0.99


def test_a_warm_start_ends_where_a_cold_one_does(samples):
    features, labels, _ = samples
    labels = torch.from_numpy(labels)
    first = fit_linear(features[0], labels, C, strength=1e-3)
    warm = fit_linear(features[0], labels, C, strength=1e-1, start=first).logits(features[0])
    cold = fit_linear(features[0], labels, C, strength=1e-1).logits(features[0])
    assert (warm.softmax(1) - cold.softmax(1)).abs().max() < 0.01


def test_cross_validated_answers_are_scikit_learns_on_the_same_folds(samples):
    features, labels, folds = samples
    probe, held_out = cross_fit(features, features, labels, folds, C)
    mean, scale = features.mean((0, 1)).numpy(), features.numpy().std((0, 1))
    x = np.concatenate(list((features.numpy() - mean) / scale))
    twice, twice_folds = np.tile(labels, 2), np.tile(folds, 2)
    for fold, (strength, temperature) in enumerate(zip(probe.strengths, probe.temperatures, strict=True)):
        model = LogisticRegression(C=strength, max_iter=5000, tol=1e-8)
        out = cross_val_predict(
            model, x, twice, cv=PredefinedSplit(twice_folds), method="predict_proba"
        ).reshape(2, N, C)[:, folds == fold]
        softened = torch.from_numpy(np.log(out) / temperature).softmax(-1)
        found = torch.from_numpy(held_out[:, folds == fold]).softmax(-1)
        assert (found - softened).abs().max() < 0.01
    of_maps = features.double() @ probe.weight[folds[0]] + probe.bias[folds[0]]
    assert np.allclose(of_maps[:, 0].numpy(), held_out[:, 0], atol=1e-4)


@pytest.mark.parametrize("several", [False, True])
def test_no_label_of_a_fold_has_a_part_in_its_soft_labels(samples, several):
    features, labels, folds = samples
    truth = multi_hot_of(features) if several else labels
    _, before = cross_fit(features, features, truth, folds, C)
    shuffled = truth.copy()
    of_fold = np.flatnonzero(folds == 1)
    shuffled[of_fold] = truth[np.random.default_rng(1).permutation(of_fold)]
    _, after = cross_fit(features, features, shuffled, folds, C)
    assert np.array_equal(before[:, folds == 1], after[:, folds == 1])
    assert not np.array_equal(before[:, folds != 1], after[:, folds != 1])


def test_a_probe_that_has_seen_the_labels_gives_them_back():
    """Of pure noise it is right about what it was fitted on, and wrong about all else: no soft label."""
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.standard_normal((1, 80, 100))).float()
    labels = np.tile(np.arange(C), 20)
    seen = fit_linear(features[0], torch.from_numpy(labels), C, strength=1.0).logits(features[0])
    _, held_out = cross_fit(
        features, features, labels, folds_of(labels, np.arange(80, dtype=np.uint64), NAMES), C
    )
    assert (seen.numpy().argmax(axis=1) == labels).mean() == 1
    assert (held_out[0].argmax(axis=1) == labels).mean() < 0.45


def test_folds_hold_every_class_evenly():
    labels = np.array([0] * 11 + [1] * 7 + [2] * 5)
    folds = folds_of(labels, np.random.default_rng(0).permutation(23).astype(np.uint64), NAMES)
    for label in range(3):
        counts = np.bincount(folds[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert folds_of(np.array([0, 0, 0, 1, 1, 1]), np.arange(6, dtype=np.uint64), NAMES).max() == 2


def test_a_class_with_one_sample_is_refused():
    with pytest.raises(
        RunError, match=r"^1 class\(es\) have one labelled sample \(b\), .* label at least two"
    ):
        folds_of(np.array([0, 0, 1]), np.arange(3, dtype=np.uint64), NAMES)


def test_the_temperature_makes_confidence_honest():
    rng = np.random.default_rng(0)
    honest = 2 * rng.standard_normal((20_000, C))
    p = np.exp(honest) / np.exp(honest).sum(axis=1, keepdims=True)
    labels = (p.cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)
    temperature = calibrate(3 * honest, labels)
    assert temperature == pytest.approx(3, rel=0.03)
    before = expected_calibration_error(3 * honest, labels)
    assert expected_calibration_error(3 * honest / temperature, labels) < 0.01 < 0.1 < before


def test_the_calibration_error_is_that_of_scikit_learns_bins():
    rng = np.random.default_rng(0)
    logits, truth = rng.standard_normal((3000, 1)), rng.integers(0, 2, (3000, 1))
    p = 1 / (1 + np.exp(-logits[:, 0]))
    share, confidence = calibration_curve(truth[:, 0], p, n_bins=15)
    counts = np.histogram(p, bins=np.linspace(0, 1, 16))[0]
    expected = (np.abs(share - confidence) * counts[counts > 0]).sum() / 3000
    assert expected_calibration_error(logits, truth) == pytest.approx(expected)


def test_features_know_neither_shift_nor_scale_of_a_sources_logits():
    first, second = torch.randn(2, 5, 7), torch.randn(2, 5, 3)
    features = probe_features([first, second])
    again = probe_features([first * 4 + 2, second / 3 - 5])
    assert features.shape == (2, 5, 10)
    assert torch.allclose(features, again, atol=1e-5)
    expected = torch.nn.functional.layer_norm(first.double(), (7,), eps=0)
    assert torch.allclose(features[..., :7], expected, atol=1e-5)
    assert (probe_features([torch.ones(1, 4)]) == 0).all()
