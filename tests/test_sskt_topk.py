"""Top-k rows: the right probabilities at any temperature, against plain sums over all classes in float64."""

import numpy as np
import pytest
import torch
from conftest import shared
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sskt.errors import SourceError
from sskt.sources.frozen import FrozenSource
from sskt.sources.input_map import InputMap
from sskt.sources.registry import open_source
from sskt.topk import decode, encode, row_width

TEMPERATURES = (0.5, 0.75, 1, 1.5, 2, 3, 4, 5, 10, 20)


@pytest.fixture(scope="module")
def real_logits():
    """What the ImageNet network says of 48 CIFAR-10 pictures: float16 (48, 1000)."""
    tile = np.asarray(Image.open(shared("data/cifar10/test_00.webp")).convert("RGB"))
    pixels = torch.from_numpy(tile.reshape(25, 32, 40, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32))
    weights = shared("weights/imagenet_resnet50.safetensors")
    source = open_source("imagenet", weights=weights, weights_dir=weights.parent)
    return FrozenSource(source, InputMap(74), device=torch.device("cpu")).logits(pixels[:48])


def softmax(logits, temperature):
    z = logits.double().numpy() / temperature
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def parts(rows):
    """Values, classes and tail numbers of rows, read by numpy as docs/store-format.md says."""
    raw = rows.numpy()
    k = (raw.shape[1] - 4) // 2
    half = raw.copy().view(np.float16)
    return half[:, :k], raw[:, k : 2 * k].astype(np.int64), half[:, 2 * k :]


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("k", [16, 64, 256])
def test_probabilities_of_real_logits_are_right_at_every_temperature(real_logits, k, temperature):
    rows = encode(real_logits, k)
    _, classes, _ = parts(rows)
    true = softmax(real_logits, temperature)
    ours = softmax(decode(rows, 1000, temperature), temperature)
    top, found = (np.take_along_axis(p, classes, axis=1) for p in (true, ours))
    bound = 0.05 if k == 16 else 0.01
    assert np.abs(top.sum(axis=1) - found.sum(axis=1)).max() < bound
    assert np.abs(top - found).max() < bound
    if (1 - top.sum(axis=1)).max() > 0.05:  # the plain way, renormalising the top k, must not pass
        plain = top / top.sum(axis=1, keepdims=True)
        assert np.abs(top.sum(axis=1) - plain.sum(axis=1)).max() > 0.05


def test_the_tail_is_exact_where_its_numbers_are(real_logits):
    for temperature in (5, 5 / 3, 0.5, 1e6):
        true = softmax(real_logits, temperature)
        ours = softmax(decode(encode(real_logits, 64), 1000, temperature), temperature)
        top = np.sort(true, axis=1)[:, -64:].sum(axis=1)
        np.testing.assert_allclose(np.sort(ours, axis=1)[:, -64:].sum(axis=1), top, atol=6e-4)


def test_values_and_classes_are_the_largest_in_order_and_equal_ones_by_class():
    z = torch.tensor([[1, 5, 3, 5, -2, 3], [0, 0, 0, 0, 0, 0]], dtype=torch.float16)
    values, classes, tail = parts(encode(z, 3))
    np.testing.assert_array_equal(values, [[5, 5, 3], [0, 0, 0]])
    np.testing.assert_array_equal(classes, [[1, 3, 2], [0, 1, 2]])
    assert tail[0, 0] == np.float16(
        (1 - 2 + 3) / 3 - 3
    )  # the mean of the rest, from the last value that is kept
    np.testing.assert_allclose(tail[1], 0, atol=1e-6)


def test_all_that_is_kept_comes_back_and_the_rest_is_level(real_logits):
    rows = encode(real_logits, 64)
    values, classes, _ = parts(rows)
    back = decode(rows, 1000, 3.0).numpy()
    assert back.dtype == np.float16
    np.testing.assert_array_equal(np.take_along_axis(back, classes, axis=1), values)
    rest = np.ones_like(back, dtype=bool)
    np.put_along_axis(rest, classes, False, axis=1)
    for row, others, kept in zip(back, rest, values, strict=True):
        assert len(np.unique(row[others])) == 1
        assert row[others][0] <= kept[-1]


def test_64_of_1000_take_264_bytes(real_logits):
    rows = encode(real_logits, 64)
    assert rows.dtype == torch.uint16
    assert rows.shape[1] * 2 == row_width(64) * 2 == 264


@given(
    st.integers(3, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1))),
    st.floats(0, 60),
    st.integers(0, 2**32 - 1),
    st.sampled_from(TEMPERATURES),
)
def test_any_row_keeps_its_order_and_stays_finite(sizes, spread, seed, temperature):
    n_classes, k = sizes
    z = torch.from_numpy(np.random.default_rng(seed).normal(0, spread, (5, n_classes))).to(torch.float16)
    back = decode(encode(z, k), n_classes, temperature)
    assert torch.isfinite(back).all()
    assert torch.equal(back.max(dim=1).values, z.max(dim=1).values)
    kept = z.topk(k, dim=1).values
    assert torch.equal(back.topk(k, dim=1).values, kept)


def test_extreme_rows_stay_finite():
    z = torch.full((2, 1000), -65504.0, dtype=torch.float16)
    z[:, :3] = torch.tensor([65504.0, 60000.0, -60000.0])
    for k in (1, 2, 64, 999):
        back = decode(encode(z, k), 1000, 1.0)
        assert torch.isfinite(back).all()
        assert torch.equal(back[:, :1], z[:, :1])


@pytest.mark.parametrize(("k", "n_classes"), [(0, 10), (10, 10), (11, 10), (5, 70_000)])
def test_what_cannot_be_kept_is_refused(k, n_classes):
    with pytest.raises(SourceError, match=f"top {k} of {n_classes} classes cannot be kept"):
        encode(torch.zeros(1, n_classes, dtype=torch.float16), k)


def test_class_indices_beyond_32767_survive():
    z = torch.arange(65_000, dtype=torch.float32).mul(-1e-3).to(torch.float16)[None].flip(1)
    back = decode(encode(z, 3), 65_000, 1.0)
    assert torch.equal(back.topk(3, dim=1).values, z.topk(3, dim=1).values)
    assert int(back.argmax()) >= 32_768
