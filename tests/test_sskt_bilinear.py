"""Compact bilinear products against explicit outer products."""

import numpy as np
import pytest
import torch

from sskt.bilinear import bilinear_product, count_hash, count_sketch, normalised_root

C, E = 16, 64


def sketched(x, seed, width=E):
    return count_sketch(x, *count_hash(seed, x.shape[1], width), width)


@pytest.mark.parametrize("width", [64, 63])
def test_the_product_is_that_of_the_hashed_outer_product_pair_by_pair(width):
    x, y = torch.randn(2, 3, C, 5, dtype=torch.float64)
    ours = bilinear_product(sketched(x, 0, width), sketched(y, 1, width)).numpy()
    (h, s), (g, t) = (tuple(v.numpy() for v in count_hash(seed, C, width)) for seed in (0, 1))
    expected = np.zeros((3, width, 5))
    for i, j in np.ndindex(C, C):
        expected[:, (h[i] + g[j]) % width] += s[i] * t[j] * x[:, i].numpy() * y[:, j].numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-12)


def test_one_pair_of_channels_lands_in_the_sum_of_its_columns():
    (h, s), (g, t) = count_hash(0, C, E), count_hash(1, C, E)
    eye = torch.eye(C, dtype=torch.float64)
    for i, j in ((0, 3), (7, 7), (15, 2)):
        product = bilinear_product(sketched(eye[i : i + 1], 0), sketched(eye[j : j + 1], 1))[0]
        expected = torch.zeros(E, dtype=torch.float64)
        expected[(h[i] + g[j]) % E] = s[i] * t[j]
        torch.testing.assert_close(product, expected)


def test_inner_products_are_right_on_average_and_with_shared_hashes_they_are_not():
    """Why the teachers' hashes are independent, where eq. 7 has the same for both factors."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.nn.functional.normalize(torch.randn(2, C, dtype=torch.float64, generator=generator), dim=1)
    true = float((x @ y) ** 2)  # of x (x) y with y (x) x, which shared hashes cannot tell apart
    pair = torch.stack([x, y]), torch.stack([y, x])
    found = {"own": [], "shared": []}
    for seed in range(0, 8000, 2):
        first = sketched(pair[0], seed)
        for name, second in (("own", sketched(pair[1], seed + 1)), ("shared", sketched(pair[1], seed))):
            product = bilinear_product(first, second)
            found[name].append(float(product[0] @ product[1]))
    off = {name: abs(np.mean(each) - true) / (np.std(each) / 4000**0.5) for name, each in found.items()}
    assert off["own"] < 4 < off["shared"]


def test_hashes_stay_what_they_are_and_are_balanced():
    columns, _ = count_hash(2, 256, 512)
    assert columns[:4].tolist() == [285, 184, 302, 138]
    columns, signs = count_hash(0, 100_000, 10)
    assert torch.bincount(columns).sub(10_000).abs().max() < 5 * 100_000**0.5
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 5 / 100_000**0.5
    assert not torch.equal(count_hash(1, 256, 512)[0], count_hash(0, 256, 512)[0])


def test_a_vertex_has_norm_1_and_signed_roots_and_that_of_empty_maps_is_0():
    product = torch.tensor([[[4.0, -9.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    vertex = normalised_root(product)
    torch.testing.assert_close(vertex[0], torch.tensor([[2.0, -3.0], [0.0, 1.0]]) / 14**0.5)
    assert not vertex[1].any()
