"""Earth mover's distances against linear programming, brute force and numbers worked out by hand."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from scipy.stats import wasserstein_distance

from sskt.transport import (
    bernoulli_distance,
    total_variation,
    transport_per_batch,
    transport_per_sample,
)


def simplex(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(shape[-1]), shape[:-1]))


def least_cost(p, q, cost):
    """The cheapest coupling of two distributions, by the simplex method."""
    n = len(p)
    marginals = np.zeros((2 * n, n * n))
    for i in range(n):
        marginals[i, i * n : (i + 1) * n] = 1
        marginals[n + i, i::n] = 1
    solved = linprog(
        cost.ravel(), A_eq=marginals, b_eq=np.concatenate([p, q]), bounds=(0, None), method="highs"
    )
    return solved.fun


@pytest.mark.parametrize("c", [2, 5, 20])
def test_total_variation_is_the_least_cost_of_moving_where_any_move_costs_1(c):
    p, q = simplex(c, 2, c)
    assert float(total_variation(p, q)) == pytest.approx(least_cost(p, q, 1 - np.eye(c)), abs=1e-9)


def test_the_order_of_classes_changes_nothing_which_it_does_in_one_dimension():
    p, q = simplex(0, 2, 9)
    order = torch.from_numpy(np.random.default_rng(1).permutation(9))
    assert float(total_variation(p[order], q[order])) == pytest.approx(
        float(total_variation(p, q)), abs=1e-12
    )
    line = np.arange(9)
    assert (
        abs(wasserstein_distance(line, line, p[order], q[order]) - wasserstein_distance(line, line, p, q))
        > 0.01
    )


def test_it_is_0_for_equal_answers_and_1_for_disjoint_ones():
    p = simplex(3, 4, 6)
    assert torch.equal(total_variation(p, p), torch.zeros(4, dtype=p.dtype))
    a, b = torch.tensor([0.25, 0.75, 0, 0]), torch.tensor([0, 0, 0.5, 0.5])
    assert float(total_variation(a, b)) == 1


def test_with_several_labels_it_is_the_mean_over_classes_by_hand():
    p, q = torch.tensor([[0.9, 0.2, 0.5]]), torch.tensor([[0.4, 0.1, 0.5]])
    assert bernoulli_distance(p, q).tolist() == pytest.approx([0.2])
    # each class is a distribution over present and absent, whose least cost is the difference
    of_classes = [least_cost(np.array([a, 1 - a]), np.array([b, 1 - b]), 1 - np.eye(2))
                  for a, b in zip(p[0].tolist(), q[0].tolist(), strict=True)]  # fmt: skip
    assert bernoulli_distance(p, q).tolist() == pytest.approx([np.mean(of_classes)], abs=1e-6)


@pytest.mark.parametrize("several", [False, True])
def test_gradients_are_those_of_finite_differences(several):
    mu = simplex(4, 3, 2, 5)
    z = torch.randn(3, 5, dtype=torch.double, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for transport in (transport_per_sample, transport_per_batch):

        def loss(z, transport=transport):
            eta = z.sigmoid() if several else z.softmax(dim=1)
            return transport(mu, eta, several=several).sum()

        assert torch.autograd.gradcheck(loss, z)


@pytest.mark.parametrize("several", [False, True])
def test_a_batch_is_matched_at_the_least_cost_of_all_assignments(several):
    n, m, c = 5, 3, 4
    mu, eta = simplex(5, n, m, c), simplex(6, n, c)
    found = transport_per_batch(mu, eta, several=several)
    for k in range(m):
        cost = np.zeros((n, n))
        for i, j in itertools.product(range(n), range(n)):
            moved = [abs(a - b) for a, b in zip(mu[i, k].tolist(), eta[j].tolist(), strict=True)]
            cost[i, j] = np.mean(moved) if several else np.sum(moved) / 2
        best = min(itertools.permutations(range(n)), key=lambda s: cost[np.arange(n), s].sum())
        np.testing.assert_allclose(found[:, k], cost[np.arange(n), best], atol=1e-12)
    alone = transport_per_sample(mu, eta, several=several)
    assert bool((found.mean(dim=0) <= alone.mean(dim=0) + 1e-12).all())
    assert float(found.sum()) < float(alone.sum())


def test_a_student_whose_answers_are_the_teachers_in_another_order_is_matched_at_no_cost():
    mu = simplex(7, 6, 1, 4)
    eta = mu[torch.tensor([3, 1, 5, 0, 4, 2]), 0]
    assert float(transport_per_batch(mu, eta, several=False).max()) == 0
    assert float(transport_per_sample(mu, eta, several=False).min()) == 0  # 1 and 4 are in place
    assert float(transport_per_sample(mu, eta, several=False).max()) > 0.1


def test_what_is_not_finite_comes_out_as_it_is():
    """The trainer reports it, with the step and its samples."""
    eta = simplex(8, 3, 4)
    eta[1] = float("nan")
    assert not bool(transport_per_batch(simplex(9, 3, 2, 4), eta, several=False).sum().isfinite())
