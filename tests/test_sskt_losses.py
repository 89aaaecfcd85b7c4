"""Losses and metrics against the formulas of docs/method.md, section 2.2, written out in float64 numpy."""

import numpy as np
import pytest
import torch

from sskt.losses import (
    AUXILIARY_LOSSES,
    KD_REDUCTIONS,
    cosine_distance,
    kd_divergence,
    multilabel_divergence,
    smooth_l1,
    soft_cross_entropy,
    soft_focal,
)
from sskt.metrics import per_class_accuracy, topk_correct

N, K = 6, 11


def pair(seed=0, scale=4.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(N, K)) * scale, rng.normal(size=(N, K)) * scale


def log_softmax(z):
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def soft_ce_numpy(z_t, z_s, t):
    return t**2 * np.mean(np.sum(-np.exp(log_softmax(z_s / t)) * log_softmax(z_t / t), axis=1))


def kl_numpy(z_t, z_s, t):
    log_p, log_q = log_softmax(z_s / t), log_softmax(z_t / t)
    return t**2 * np.mean(np.sum(np.exp(log_p) * (log_p - log_q), axis=1))


def focal_numpy(z_t, z_s, t):
    p, log_q = np.exp(log_softmax(z_s / t)), log_softmax(z_t / t)
    return t**2 * np.mean(np.sum(-p * (1 - np.exp(log_q)) ** 2 * log_q, axis=1))


def normalised_numpy(v):
    return np.array([(row - row.mean()) / row.std() for row in v])


def cosine_numpy(z, v, _t):
    wanted = normalised_numpy(v)
    return np.mean([1 - a @ b / np.sqrt(a @ a) / np.sqrt(b @ b) for a, b in zip(z, wanted, strict=True)])


def smooth_l1_numpy(z, v, _t):
    d = np.abs(z - normalised_numpy(v))
    return np.where(d < 1, d**2 / 2, d - 0.5).mean()


LOSSES = {
    "cosine": (lambda a, b, temperature: cosine_distance(a, b), cosine_numpy),
    "smooth-l1": (lambda a, b, temperature: smooth_l1(a, b), smooth_l1_numpy),
    "focal": (soft_focal, focal_numpy),
    "ce": (soft_cross_entropy, soft_ce_numpy),
    "kd": (
        lambda a, b, temperature: kd_divergence(a, b, temperature=temperature, reduction="batchmean"),
        kl_numpy,
    ),
}


def test_every_auxiliary_loss_is_tested_here():
    assert set(LOSSES) == set(AUXILIARY_LOSSES)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("temperature", [1.0, 3.0, 20.0])
def test_loss_is_the_written_formula(name, temperature):
    ours, formula = LOSSES[name]
    z_t, z_s = pair()
    got = ours(
        torch.tensor(z_t, dtype=torch.float32),
        torch.tensor(z_s, dtype=torch.float32),
        temperature=temperature,
    )
    assert got.shape == ()
    assert float(got) == pytest.approx(formula(z_t, z_s, temperature), rel=1e-6, abs=1e-6 * temperature**2)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_the_finite_difference(name):
    ours, formula = LOSSES[name]
    z_t, z_s = pair(seed=1, scale=2.0)
    z = torch.tensor(z_t, dtype=torch.float64, requires_grad=True)
    ours(z, torch.tensor(z_s), temperature=3.0).backward()
    step, numeric = 1e-5, np.empty_like(z_t)
    for place in np.ndindex(z_t.shape):
        up, down = z_t.copy(), z_t.copy()
        up[place] += step
        down[place] -= step
        numeric[place] = (formula(up, z_s, 3.0) - formula(down, z_s, 3.0)) / (2 * step)
    np.testing.assert_allclose(z.grad.numpy(), numeric, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_released_kd_is_the_divergence_over_the_number_of_classes(temperature):
    z_t, z_s = (torch.tensor(z, dtype=torch.float64) for z in pair())
    mean, batchmean = (
        float(kd_divergence(z_t, z_s, temperature=temperature, reduction=reduction))
        for reduction in KD_REDUCTIONS
    )
    assert batchmean == pytest.approx(K * mean, rel=1e-12)


def test_kd_of_a_source_with_itself_is_zero_and_ce_is_its_entropy():
    z, _ = (torch.tensor(z, dtype=torch.float64) for z in pair())
    p = z.softmax(dim=1)
    assert float(kd_divergence(z, z, temperature=1.0, reduction="batchmean")) == pytest.approx(0, abs=1e-12)
    assert float(soft_cross_entropy(z, z, temperature=1.0)) == pytest.approx(
        float(-(p * p.log()).sum(1).mean())
    )


@pytest.mark.parametrize("loss", [cosine_distance, smooth_l1])
def test_vector_losses_see_neither_a_rows_mean_nor_its_scale_and_survive_a_constant_row(loss):
    z, v = (torch.tensor(each, dtype=torch.float64) for each in pair())
    assert float(loss(z, 5 * v + 3)) == pytest.approx(float(loss(z, v)), rel=1e-9)
    v[0] = 0.25
    z = z.clone().requires_grad_()
    loss(z, v).backward()
    assert torch.isfinite(z.grad).all()


def test_losses_stay_finite_where_a_probability_underflows():
    z_s = torch.tensor([[1000.0, 0.0, -1000.0]])
    z_t = torch.tensor([[-1000.0, 0.0, 1000.0]], requires_grad=True)
    loss = soft_cross_entropy(z_t, z_s, temperature=1.0) + kd_divergence(
        z_t, z_s, temperature=1.0, reduction="batchmean"
    )
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(z_t.grad).all()


def test_kd_reduction_has_no_default_and_no_other_value():
    z = torch.zeros(2, 3)
    with pytest.raises(TypeError):
        kd_divergence(z, z, temperature=1.0)
    with pytest.raises(ValueError, match="reduction is 'sum', expected one of mean, batchmean"):
        kd_divergence(z, z, temperature=1.0, reduction="sum")


@pytest.mark.parametrize("k", [1, 3, K])
def test_topk_counts_rows_whose_class_ranks_below_k(k):
    logits, _ = pair(seed=2)
    labels = np.random.default_rng(3).integers(0, K, size=N)
    rank = (logits > logits[np.arange(N), labels][:, None]).sum(axis=1)
    assert topk_correct(torch.tensor(logits), torch.tensor(labels), k=k) == int((rank < k).sum())


def test_per_class_accuracy_is_nan_for_an_absent_class():
    logits = torch.eye(4)[[0, 1, 1, 0, 3]]
    labels = torch.tensor([0, 1, 0, 0, 2])
    got = per_class_accuracy(logits, labels, n_classes=4)
    np.testing.assert_allclose(got, [2 / 3, 1.0, 0.0, np.nan])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_divergence_of_presences_is_that_of_bernoulli_distributions(temperature):
    z_t, z_s = pair()
    q, p = (1 / (1 + np.exp(-z / temperature)) for z in (z_t, z_s))
    terms = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    for reduction, wanted in (("mean", terms.mean()), ("batchmean", terms.sum(axis=1).mean())):
        got = multilabel_divergence(
            torch.tensor(z_t), torch.tensor(z_s), temperature=temperature, reduction=reduction
        )
        assert float(got) == pytest.approx(temperature**2 * wanted, rel=1e-6)
