"""The embedded target: scikit-learn's 1,797 handwritten digits, 8 x 8 grey (UCI Optical Recognition of
Handwritten Digits).
"""

from __future__ import annotations

import numpy as np

from pipeline.data.datasets import subset
from pipeline.data.datasets.cifar_stl import array_dataset
from pipeline.data.datasets.dataset import Dataset
from pipeline.data.datasets.registry import DatasetSpec

_TEST_SHARE = 0.3


def load_digits(spec: DatasetSpec, split: str) -> Dataset:
    """The index of one split; grey levels 0 to 16 become 0 to 255.

    Ids are positions in scikit-learn's own order. 30 % of each class, by a fixed draw, are the test split.
    """
    from sklearn.datasets import (
        load_digits as load_sklearn,
    )  # a second of import that other targets need not pay

    data = load_sklearn()
    grey = np.rint(data.images * (255 / 16)).astype(np.uint8)
    pixels = np.ascontiguousarray(np.repeat(grey[..., None], 3, axis=3))
    labels = data.target.astype(np.int64)
    ids = np.arange(len(labels), dtype=np.int64)
    n_test = np.rint(np.bincount(labels) * _TEST_SHARE)
    in_test = subset.rank_in_class(labels, subset.draws(ids)) < n_test[labels]
    ids = ids[in_test] if split == "test" else ids[~in_test]
    return array_dataset(spec, split, tuple(str(name) for name in data.target_names), pixels, labels, ids)
