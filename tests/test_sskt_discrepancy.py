"""Maximum mean discrepancy against loops in numpy."""

import math

import numpy as np
import pytest
import torch

from sskt.bilinear import bilinear_product, count_hash, count_sketch, normalised_root
from sskt.discrepancy import discrepancies, discrepancy, selectivity

N, A, B, S = 3, 4, 5, 9


def channels(n, seed, dtype=torch.float64):
    maps = torch.randn(N, n, S, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return selectivity(maps)


def mean_kernel(x, y, width):
    pairs = [np.exp(-((p - q) ** 2).sum() / (2 * width)) for p in x for q in y]
    return sum(pairs) / len(pairs)


def by_hand(a, b):
    width = np.mean([((p - q) ** 2).sum() for n in range(len(a)) for p in a[n] for q in b[n]])
    return [
        mean_kernel(x, x, width) + mean_kernel(y, y, width) - 2 * mean_kernel(x, y, width)
        for x, y in zip(a, b, strict=True)
    ]


def test_it_is_the_papers_kernel_by_kernel():
    a, b, c = channels(A, 0), channels(B, 1), channels(A, 2)
    np.testing.assert_allclose(discrepancy(a, b), by_hand(a.numpy(), b.numpy()), atol=1e-12)
    for ours, other in zip(discrepancies(a, [b, c]), (b, c), strict=True):
        np.testing.assert_allclose(ours, by_hand(a.numpy(), other.numpy()), atol=1e-12)


def test_selectivity_is_over_positions():
    maps = torch.tensor([[[0.0, math.log(3)], [5.0, 5.0]]])
    torch.testing.assert_close(selectivity(maps), torch.tensor([[[0.25, 0.75], [0.5, 0.5]]]))


def test_it_is_0_for_the_same_channels_in_any_order_and_never_below():
    a, b = channels(A, 0), channels(A, 1)
    assert float(discrepancy(a, a[:, torch.randperm(A)]).abs().max()) < 1e-12
    assert float(discrepancy(a, b).min()) > 1e-3
    torch.testing.assert_close(discrepancy(a, b[:, [2, 0, 3, 1]]), discrepancy(a, b))
    torch.testing.assert_close(discrepancy(b, a), discrepancy(a, b))


def test_the_width_of_the_kernel_carries_no_gradient():
    a, b = channels(A, 0), channels(B, 1)
    ours = a.clone().requires_grad_()
    discrepancy(ours, b).sum().backward()
    width = (a[:, :, None] - b[:, None]).square().sum(dim=3).mean()
    free = a.clone().requires_grad_()

    def kernel(x, y):
        return (-(x[:, :, None] - y[:, None]).square().sum(dim=3) / (2 * width)).exp().mean()

    (kernel(free, free) + kernel(b, b) - 2 * kernel(free, b)).mul(N).backward()
    torch.testing.assert_close(ours.grad, free.grad)


@pytest.mark.parametrize("same", [True, False])
def test_gradients_are_finite_where_channels_are_equal(same):
    flat = torch.full((N, A, S), 1 / S).requires_grad_()
    loss = discrepancy(flat, flat.detach() if same else channels(B, 1, torch.float32)).sum()
    loss.backward()
    assert torch.isfinite(flat.grad).all()
    assert not same or loss.item() < 1e-6


def vertex_of(maps, width=512):
    sketches = [count_sketch(m, *count_hash(i, 256, width), width) for i, m in enumerate(maps)]
    return normalised_root(bilinear_product(*sketches))


def test_float16_maps_hardly_move_it_and_a_temperature_of_1_leaves_a_vertex_flat():
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(2, 2, 256, 36, generator=generator)
    a = selectivity(torch.rand(2, 256, 36, generator=generator))
    vertices = [vertex_of(m) for m in (maps, maps.half().float())]
    root = (512 * 36) ** 0.5
    whole, rounded = (discrepancy(a, selectivity(v * root)) for v in vertices)
    torch.testing.assert_close(rounded, whole, rtol=1e-3, atol=0)

    def entropy(t):
        p = selectivity(vertices[0] * t)
        return float(-(p * p.log()).sum(dim=2).mean())

    assert entropy(1.0) == pytest.approx(math.log(36), abs=1e-3)  # eq. 8 to the letter says nothing
    assert entropy(root) < math.log(36) - 0.1


def test_an_empty_map_gives_a_flat_vertex_and_no_nan():
    vertex = vertex_of(torch.zeros(2, 2, 256, 36))
    flat = selectivity(vertex * 100)
    torch.testing.assert_close(flat, torch.full_like(flat, 1 / 36))
    a = selectivity(torch.rand(2, 4, 36))
    assert torch.isfinite(discrepancy(a, flat)).all()
