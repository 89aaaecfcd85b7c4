"""Targets that are class folders of JPEG and PNG files: imagenet, places365 and imagefolder:PATH.

ROOT/train/CLASS/ and ROOT/val/CLASS/ (or ROOT/test/CLASS/, where there is no val) are the train and test
splits. An imagefolder without these, ROOT/CLASS/, holds a fifth of each class out as its test split. Folders
inside a class belong to it.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.targets import subset
from pipeline.targets.index import TargetIndex
from pipeline.targets.listing import Listing, class_folders, index_of, list_pictures
from pipeline.targets.spec import TargetSpec, target_slug
from sskt.errors import TargetError
from sskt.names import shown

_FOLDERS = {"train": ("train",), "test": ("val", "test")}
_HELD_OUT = 5  # one in five


def load_folders(spec: TargetSpec, split: str, root: Path, index_dir: Path) -> TargetIndex:
    """The index of one split, every file validated. Classes are the sorted folder names of the train split.

    Raises TargetError for a missing or empty folder, a class that the train split does not have, and damaged
    files.
    """
    if not root.is_dir():
        raise TargetError(f"{root}: no such folder; {spec.how_to_prepare}")
    folder = split_folder(spec, split, root)
    classes = class_names(spec, root, folder)
    beside = [] if folder == root else [root / name for name in class_folders(root) if root / name != folder]
    listing = list_pictures(folder, slug=target_slug(spec.name), index_dir=index_dir, beside=beside)
    index = _index(spec, split, classes, listing)
    if folder != root:
        return index
    held = held_out(listing.paths, index.labels)
    if split == "train":
        return index.take(np.flatnonzero(~held))
    note = (
        f"{root}: has no train/ and val/, so a fixed fifth of each class is held out ({held.sum()} pictures)"
    )
    return replace(index.take(np.flatnonzero(held)), notes=(note,))


def has_split(root: Path, split: str) -> bool:
    """Whether a folder of class folders for this split lies under `root`."""
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


def split_folder(spec: TargetSpec, split: str, root: Path) -> Path:
    """The folder whose subfolders are the classes of this split; `root` itself if it is not divided."""
    if spec.n_classes is None and not has_split(root, "train") and not has_split(root, "test"):
        return root
    for name in _FOLDERS[split]:
        if class_folders(root / name):
            return root / name
    there = ", ".join(class_folders(root)[:5]) or "none"
    wanted = " or ".join(_FOLDERS[split])
    raise TargetError(
        f"{root}: no folder {wanted} with class folders for the {split} split, found {there}; "
        f"{spec.how_to_prepare}"
    )


def class_names(spec: TargetSpec, root: Path, folder: Path) -> tuple[str, ...]:
    """Class names in label order, checked against the official number and this split's folders."""
    defining = root / "train" if folder != root and has_split(root, "train") else folder
    classes = class_folders(defining)
    if spec.n_classes is not None and len(classes) != spec.n_classes:
        raise TargetError(
            f"{defining}: {len(classes)} class folders, expected {spec.n_classes}; add the others, "
            f"or name this folder as imagefolder:{root}"
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


def _index(spec: TargetSpec, split: str, classes: tuple[str, ...], listing: Listing) -> TargetIndex:
    label_of = {os.fsencode(name): label for label, name in enumerate(classes)}
    labels = [label_of[bytes(path).split(b"/", 1)[0]] for path in listing.paths]
    return index_of(listing, spec, split, classes, np.array(labels, dtype=np.int64))
