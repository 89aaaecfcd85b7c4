"""Targets that are class folders of JPEG and PNG files: imagenet, places365 and imagefolder:PATH.

ROOT/train/CLASS/ and ROOT/val/CLASS/ (or ROOT/test/CLASS/, where there is no val) are the train and test
splits. An imagefolder's splits may have other names and be three (`pipeline.data.datasets.folder_splits`);
one without, ROOT/CLASS/, holds a fifth of each class out as its test split. Folders inside a class belong to
it.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.datasets import subset
from pipeline.data.datasets.dataset import Dataset
from pipeline.data.datasets.folder_splits import Layout, layout_of
from pipeline.data.datasets.image_files import Listing, class_folders, dataset_of, list_images
from pipeline.data.datasets.registry import DatasetSpec, target_slug
from sskt.errors import TargetError
from sskt.names import shown

_FOLDERS = {"train": ("train",), "test": ("val", "test")}  # of an official target
_HELD_OUT = 5  # one in five


def load_folders(spec: DatasetSpec, split: str, root: Path, index_dir: Path) -> Dataset:
    """The index of one split, every file validated. Classes are the sorted folder names of the train split.

    Raises TargetError for a missing or empty folder, a class that the train split does not have, and damaged
    files.
    """
    if not root.is_dir():
        raise TargetError(f"{root}: no such folder; {spec.how_to_prepare}")
    layout = splits_of(spec, root)
    folder = layout.folder(split, spec.how_to_prepare)
    classes = class_names(spec, folder, layout.folders.get("train", folder))
    beside = [other for other in layout.folders.values() if other != folder]
    listing = list_images(folder, slug=target_slug(spec.name), index_dir=index_dir, beside=beside)
    dataset = _dataset(spec, split, classes, listing)
    dataset = replace(dataset, notes=(*layout.notes, *dataset.notes))
    if folder != root:
        return dataset
    held = held_out(listing.paths, dataset.labels)
    if split == "train":
        return dataset.take(np.flatnonzero(~held))
    note = (
        f"{root}: has no train/ and val/, so a fixed fifth of each class is held out ({held.sum()} pictures)"
    )
    return replace(dataset.take(np.flatnonzero(held)), notes=(*layout.notes, note))


def splits_of(spec: DatasetSpec, root: Path) -> Layout:
    """How a folder is divided: an official target by its official names, one's own as `layout_of` finds."""
    if spec.n_classes is None:
        return layout_of(root, videos=spec.videos is not None)
    there = {
        split: [root / name for name in names if class_folders(root / name)]
        for split, names in _FOLDERS.items()
    }
    return Layout(root, {split: folders[0] for split, folders in there.items() if folders})


def has_split(root: Path, split: str) -> bool:
    """Whether an official target's folder of class folders for this split lies under `root`."""
    return any(class_folders(root / name) for name in _FOLDERS[split])


def held_out(paths: NDArray[np.bytes_], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which pictures of an undivided folder are its test split: bool (N,).

    In each class a fifth (rounded, at least one, but never a class's only picture) with the smallest sha256
    of the relative path. So a changed picture stays where it is, and an added one moves at most one other.
    """
    keys = [int.from_bytes(hashlib.sha256(bytes(path)).digest()[:8], "big") for path in paths]
    counts = np.bincount(labels)
    n_test = np.where(counts > 1, np.maximum(1, np.rint(counts / _HELD_OUT)), 0)
    held: NDArray[np.bool_] = subset.rank_in_class(labels, np.array(keys, dtype=np.uint64)) < n_test[labels]
    return held


def class_names(spec: DatasetSpec, folder: Path, defining: Path) -> tuple[str, ...]:
    """Class names in label order: the folders of `defining`, the train split where there is one, checked
    against the official number and the folders of `folder`.
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
    if unknown:
        raise TargetError(
            f"{folder}: class folder {', '.join(map(shown, unknown[:5]))} does not exist in {defining} "
            f"({len(unknown)} such folders); rename or remove it"
        )
    return tuple(classes)


def _dataset(spec: DatasetSpec, split: str, classes: tuple[str, ...], listing: Listing) -> Dataset:
    label_of = {os.fsencode(name): label for label, name in enumerate(classes)}
    labels = [label_of[bytes(path).split(b"/", 1)[0]] for path in listing.paths]
    return dataset_of(listing, spec, split, classes, np.array(labels, dtype=np.int64))
