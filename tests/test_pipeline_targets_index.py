"""Subsets: stratify, nested, the same whatever was asked before; digests that name what they cover."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.datasets import load_dataset, parse_target
from pipeline.data.datasets.images import array_dataset
from pipeline.data.datasets.subset import draws, rank_in_class, stratify
from sskt.errors import TargetError


def _dataset(n=60, n_classes=4, seed=0):
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (n, 5, 6, 3)).astype(np.uint8)
    labels = np.sort(random.integers(0, n_classes, n)).astype(np.int64)
    names = tuple(f"class{i}" for i in range(n_classes))
    return array_dataset("digits", "train", names, pixels, labels, np.arange(n, dtype=np.int64))


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=80),
    sizes=st.tuples(st.integers(0, 90), st.integers(0, 90)),
)
def test_subsets_are_nested_and_give_equal_shares(labels, sizes):
    labels = np.array(labels, dtype=np.int64)
    keys = draws(np.arange(len(labels), dtype=np.int64))
    small, large = (set(stratify(labels, keys, n).tolist()) for n in sorted(sizes))
    assert small <= large
    assert len(large) == min(max(sizes), len(labels))
    taken = np.bincount(labels[sorted(large)], minlength=6)
    there = np.bincount(labels, minlength=6)
    unfinished = taken[taken < there]  # classes that could have given more
    if len(unfinished):
        assert taken.max() - unfinished.min() <= 1


def test_rank_in_class_is_the_place_among_its_own():
    labels = np.array([1, 0, 1, 1, 0], dtype=np.int64)
    keys = np.array([30, 5, 10, 20, 4], dtype=np.uint64)
    assert rank_in_class(labels, keys).tolist() == [2, 1, 0, 1, 0]


def test_limit_does_not_depend_on_the_way_there():
    dataset = _dataset()
    direct, twice = dataset.limit(12), dataset.limit(30).limit(12)
    assert direct.ids.tolist() == twice.ids.tolist() == sorted(direct.ids)
    for subset in (direct, twice):
        np.testing.assert_array_equal(subset.images(np.arange(12)), dataset.images(direct.ids))
    assert direct.content_sha256 == twice.content_sha256 != dataset.content_sha256


def test_draw_of_a_limit_is_pinned():
    dataset = load_dataset(
        parse_target("digits"), "train", data_dir=Path("unused"), index_dir=Path("unused"), limit=12
    )
    assert dataset.ids.tolist() == [196, 365, 543, 615, 789, 1051, 1177, 1410, 1562, 1678, 1703, 1791]


def test_limit_of_all_or_more_is_the_index_itself():
    dataset = _dataset()
    assert dataset.limit(60) is dataset
    assert dataset.limit(10**6) is dataset


@pytest.mark.parametrize("n", [-1, 0, 3])
def test_limit_below_the_number_of_classes_is_refused(n):
    with pytest.raises(
        TargetError, match=rf"digits train: a limit of {n} leaves classes .* at least 4; raise"
    ):
        _dataset().limit(n)


def test_unknown_split_is_refused(tmp_path):
    with pytest.raises(TargetError, match="split is 'val', expected train or test"):
        load_dataset(parse_target("digits"), "val", data_dir=tmp_path, index_dir=tmp_path)


def test_digests_cover_order_contents_names_and_labels():
    dataset = _dataset()
    turned = dataset.take(np.arange(60)[::-1])
    assert turned.content_sha256 != dataset.content_sha256
    assert turned.take(np.arange(60)[::-1]).content_sha256 == dataset.content_sha256
    changed = dataset.contents.copy()
    changed[5, 3] ^= 1
    assert replace(dataset, contents=changed).content_sha256 != dataset.content_sha256
    assert replace(dataset, contents=changed).classes_sha256 == dataset.classes_sha256
    labels = dataset.labels.copy()
    labels[5] = (labels[5] + 1) % 4
    swapped = (dataset.classes[1], dataset.classes[0], *dataset.classes[2:])
    digests = {
        i.classes_sha256
        for i in (dataset, replace(dataset, labels=labels), replace(dataset, classes=swapped))
    }
    assert len(digests) == 3


def test_encoded_array_picture_is_a_png_of_its_pixels():
    dataset = _dataset()
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(dataset.encoded(9)))), dataset.pixels_of(9)
    )
