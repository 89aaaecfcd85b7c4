"""The target that needs no download: scikit-learn's 1,797 handwritten digits, 8 x 8 grey (UCI Optical
Recognition of Handwritten Digits).
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

from pipeline.data.datasets import subset
from pipeline.data.datasets.dataset import Dataset, DatasetSpec, Family
from pipeline.data.datasets.images import array_dataset

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


class Digits(Family[DatasetSpec]):
    """scikit-learn's digits."""

    name, targets = "digits", (_SPEC,)
    is_bundled = True

    def load(self, spec: DatasetSpec, split: str, data_dir: Path, index_dir: Path) -> Dataset:  # noqa: ARG002
        """See `Family.load`; grey levels 0 to 16 become 0 to 255.

        Ids are positions in scikit-learn's own order. A fixed draw of 30 % of each class is the test split.
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

    def is_prepared(self, spec: DatasetSpec, split: str, data_dir: Path, index_dir: Path) -> bool:  # noqa: ARG002
        """See `Family.is_prepared`."""
        return True
