"""ImageNet and Places365 as their archives unpack: pictures in no class folders, labels in official lists.

imagenet: val/ILSVRC2012_val_00000001.JPEG and on, labelled by ILSVRC2012_devkit_t12/data/ (the ground truth
and meta.mat). places365: data_256_standard/ (or data_large_standard/) and val_256/ (or val_large/), labelled
by places365_train_standard.txt, places365_val.txt and categories_places365.txt. Classes have the names and
the order of the class folders, so that either form gives the same labels.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from pipeline.data.datasets.dataset import Dataset
from pipeline.data.datasets.image_files import dataset_of, list_named
from pipeline.data.datasets.image_folder import class_names, has_split
from pipeline.data.datasets.registry import DatasetSpec, target_slug
from sskt.errors import TargetError

_DEVKIT = Path("ILSVRC2012_devkit_t12/data")
_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_CATEGORIES = "categories_places365.txt"
_PLACES = {  # list, and the folders its paths may begin in: the small pictures first
    "train": ("places365_train_standard.txt", ("data_256_standard", "data_large_standard")),
    "test": ("places365_val.txt", ("val_256", "val_large")),
}


@dataclass(frozen=True, slots=True)
class _Named:
    """What lists say: class names in label order, the pictures' paths below the root, their labels."""

    classes: tuple[str, ...]
    paths: list[str]
    labels: list[int]


def has_lists(spec: DatasetSpec, split: str, root: Path) -> bool:
    """Whether the official lists of this split, and the folder of its pictures, lie under `root`."""
    if spec.name == "imagenet":
        return split == "test" and (root / _DEVKIT / _GROUND_TRUTH).is_file() and (root / "val").is_dir()
    if spec.name == "places365":
        named, folders = _PLACES[split]
        return (root / named).is_file() and any((root / folder).is_dir() for folder in folders)
    return False


def load_listed(spec: DatasetSpec, split: str, root: Path, index_dir: Path) -> Dataset:
    """The index of one split, every file validated; ids are places in the list.

    Raises TargetError for lists that cannot be read or contradict each other, and for pictures that are
    missing or damaged.
    """
    named = _READERS[spec.name](spec, split, root)
    paths = [os.fsencode(path) for path in named.paths]
    listing = list_named(root, paths, slug=f"{target_slug(spec.name)}-{split}", index_dir=index_dir)
    labels = np.array(named.labels, dtype=np.int64)[listing.ids]
    return dataset_of(listing, spec, split, named.classes, labels)


def _imagenet(spec: DatasetSpec, split: str, root: Path) -> _Named:
    """The validation pictures: line n of the ground truth is the ILSVRC2012_ID of picture n."""
    assert split == "test"  # noqa: S101 - has_lists
    wnid_of = _synsets(root / _DEVKIT / "meta.mat")
    classes = tuple(sorted(wnid_of.values()))
    if len(classes) != spec.n_classes:
        raise TargetError(
            f"{root / _DEVKIT / 'meta.mat'}: {len(classes)} synsets without children, expected "
            f"{spec.n_classes}; restore the official file"
        )
    if has_split(root, "train") and class_names(spec, root / "train", root / "train") != classes:
        raise TargetError(
            f"{root / 'train'}: its class folders are not the WNIDs of {_DEVKIT}; restore their names"
        )
    label_of = {synset: classes.index(wnid) for synset, wnid in wnid_of.items()}
    lines = _lines(root / _DEVKIT / _GROUND_TRUTH)
    labels = []
    for number, line in enumerate(lines, start=1):
        if not line.isdecimal() or int(line) not in label_of:
            raise _wrong_line(
                root / _DEVKIT / _GROUND_TRUTH, number, line, f"an ILSVRC2012_ID of 1 to {len(classes)}"
            )
        labels.append(label_of[int(line)])
    paths = [f"val/ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, len(lines) + 1)]
    return _Named(classes, paths, labels)


def _synsets(path: Path) -> dict[int, str]:
    """WNID by ILSVRC2012_ID, of the synsets that are classes (those without children)."""
    try:
        synsets: Any = scipy.io.loadmat(path, squeeze_me=True)["synsets"]
        return {
            int(each["ILSVRC2012_ID"]): str(each["WNID"])
            for each in synsets
            if int(each["num_children"]) == 0
        }
    except (OSError, ValueError, KeyError, IndexError, TypeError, NotImplementedError) as error:
        raise TargetError(f"{path}: cannot be read ({error}); restore the official file") from None


def _places365(spec: DatasetSpec, split: str, root: Path) -> _Named:
    classes = _categories(spec, root / _CATEGORIES)
    name, folders = _PLACES[split]
    folder = next(folder for folder in folders if (root / folder).is_dir())
    paths, labels = [], []
    for number, line in enumerate(_lines(root / name), start=1):
        path, _, label = line.rpartition(" ")
        if not path or not label.isdecimal() or int(label) >= len(classes):
            raise _wrong_line(root / name, number, line, f"a path and a label of 0 to {len(classes) - 1}")
        paths.append(f"{folder}/{path.lstrip('/')}")
        labels.append(int(label))
    return _Named(classes, paths, labels)


def _categories(spec: DatasetSpec, path: Path) -> tuple[str, ...]:
    """Class names as the class folders have them: "/a/arena/hockey 15" is class 15, "arena-hockey"."""
    classes: list[str] = []
    for number, line in enumerate(_lines(path), start=1):
        name, _, label = line.rpartition(" ")
        if name.count("/") < 2 or label != str(len(classes)):
            raise _wrong_line(path, number, line, f"/LETTER/CATEGORY {len(classes)}")
        classes.append(name.split("/", 2)[2].replace("/", "-"))
    if len(classes) != spec.n_classes:
        raise TargetError(
            f"{path}: {len(classes)} categories, expected {spec.n_classes}; restore the official file"
        )
    return tuple(classes)


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TargetError(f"{path}: cannot be read ({error}); restore the official file") from None
    lines = [line.strip() for line in lines]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise TargetError(f"{path}: names no picture; restore the official file")
    return lines


def _wrong_line(path: Path, number: int, line: str, expected: str) -> TargetError:
    return TargetError(f"{path}: line {number} is {line!r}, expected {expected}; restore the official file")


_READERS: dict[str, Callable[[DatasetSpec, str, Path], _Named]] = {
    "imagenet": _imagenet,
    "places365": _places365,
}
