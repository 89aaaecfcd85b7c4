"""The target that needs no download: scikit-learn's 1,797 handwritten digits, 8 x 8 grey (UCI Optical
Recognition of Handwritten Digits).
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

from pipeline.data.datasets import subset
from pipeline.data.datasets.dataset import Dataset, array_dataset
from pipeline.data.datasets.registry import DatasetSpec, Family

_TEST_SHARE = 0.3
_SPEC = DatasetSpec(
    name="digits",
    family="digits",
    n_classes=10,
    side_px=16,
    short_px=16,
    plan_kind="pad-crop-flip",
    source_scale=Fraction(2),
    how_to_prepare="install scikit-learn, which carries them",
    pad=1,  # of 8 stored pixels
    flip=0.0,  # a mirrored digit is another sign
)


def _load(spec: DatasetSpec, split: str, _data_dir: Path, _index_dir: Path) -> Dataset:
    """One split; grey levels 0 to 16 become 0 to 255.

    Ids are positions in scikit-learn's own order. 30 % of each class, by a fixed draw, are the test split.
    """
    from sklearn.datasets import load_digits  # a second of import that other targets need not pay

    data = load_digits()
    grey = np.rint(data.images * (255 / 16)).astype(np.uint8)
    pixels = np.ascontiguousarray(np.repeat(grey[..., None], 3, axis=3))
    labels = data.target.astype(np.int64)
    ids = np.arange(len(labels), dtype=np.int64)
    n_test = np.rint(np.bincount(labels) * _TEST_SHARE)
    in_test = subset.rank_in_class(labels, subset.draws(ids)) < n_test[labels]
    ids = ids[in_test] if split == "test" else ids[~in_test]
    classes = tuple(str(name) for name in data.target_names)
    return array_dataset(spec.name, split, classes, pixels, labels, ids)


def _is_prepared(_spec: DatasetSpec, _split: str, _data_dir: Path, _index_dir: Path) -> bool:
    return True


FAMILY = Family(name="digits", load=_load, is_prepared=_is_prepared, targets=(_SPEC,), is_bundled=True)
