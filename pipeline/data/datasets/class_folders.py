"""Class folders: their names in label order, and a fixed test split for those without one."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.datasets import subset
from pipeline.data.datasets.dataset import DatasetSpec
from pipeline.data.datasets.walk import is_hidden
from sskt.errors import TargetError, shown

_HELD_OUT = 5  # one sample in five


def class_folders(root: Path) -> list[str]:
    """Sorted names of the folders directly in `root`, hidden ones excepted; none if it is not a folder."""
    try:
        with os.scandir(root) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not is_hidden(e.name))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise TargetError(
            f"{shown(str(root))}: cannot be listed ({error.strerror or error}); allow reading it"
        ) from None


def class_names(spec: DatasetSpec, folder: Path, defining: Path) -> tuple[str, ...]:
    """Class names in label order: the folders of `defining`, the train split where there is one. Raises
    TargetError if their number is not the official one, or `folder` has others.
    """
    classes = class_folders(defining)
    if spec.n_classes is not None and len(classes) != spec.n_classes:
        raise TargetError(
            f"{defining}: {len(classes)} class folders, expected {spec.n_classes}; add the others, "
            f"or name this folder as imagefolder:{defining.parent}"
        )
    if len(classes) < 2:
        found = f"one class folder ({classes[0]})" if classes else "no class folder"
        raise TargetError(f"{defining}: {found}, expected at least two; {spec.how_to_prepare}")
    unknown = sorted(set(class_folders(folder)) - set(classes))
    if "unlabelled" in unknown:
        raise TargetError(
            f"{shown(str(folder))}: holds a folder unlabelled, and every image of this split needs a label; "
            f"move it beside train/, as {shown(str(defining.parent / 'unlabelled'))}"
        )
    if unknown:
        raise TargetError(
            f"{folder}: class folder {', '.join(map(shown, unknown[:5]))} does not exist in {defining} "
            f"({len(unknown)} such folders); rename or remove it"
        )
    return tuple(classes)


def hold_out(paths: NDArray[np.bytes_], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which samples of an undivided folder are its test split: bool (N,).

    In each class, the fifth (rounded, at least one sample, but never a class's only one) with the smallest
    sha256 of the relative path. So a changed file stays in its split, and an added one moves at most one
    other.
    """
    keys = [int.from_bytes(hashlib.sha256(bytes(path)).digest()[:8], "big") for path in paths]
    counts = np.bincount(labels)
    n_test = np.where(counts > 1, np.maximum(1, np.rint(counts / _HELD_OUT)), 0)
    rank = subset.rank_in_class(labels, np.array(keys, dtype=np.uint64))
    in_test: NDArray[np.bool_] = rank < n_test[labels]
    return in_test
