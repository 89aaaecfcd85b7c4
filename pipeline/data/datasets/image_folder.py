"""imagefolder:PATH, a user's class folders of image files; imagenet and places365 have the same layout.

ROOT/train/CLASS/ and ROOT/val/CLASS/ (or ROOT/test/CLASS/, where there is no val) are the train and test
splits. A user's folder may name its splits otherwise and have three (`pipeline.data.datasets.folder_splits`);
if it has none, ROOT/CLASS/, a fifth of each class is held out as the test split. Folders inside a class
belong to it. ROOT/unlabelled/, beside train/, holds images without labels, in any folders.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.data.datasets.class_folders import class_folders, class_names, hold_out
from pipeline.data.datasets.dataset import UNLABELLED, Dataset, Family, own_folder
from pipeline.data.datasets.folder_splits import Layout, has_unlabelled, has_val, layout_of
from pipeline.data.datasets.image_files import ImageListing, ImageSpec, list_images, to_dataset
from sskt.errors import TargetError

_FOLDERS = {"train": ("train",), "test": ("val", "test")}  # of an official target


class ImageFolder(Family[ImageSpec]):
    """A user's folders of images."""

    name, is_path = "imagefolder", True

    def from_path(self, path: str) -> ImageSpec:
        """See `Family.from_path`."""
        root = own_folder("imagefolder", path)
        return ImageSpec(
            name=f"imagefolder:{root.name}",
            family="imagefolder",
            n_classes=None,
            how_to_prepare=(
                f"put the pictures as {root}/train/CLASS/*.jpg and {root}/val/CLASS/*.jpg, "
                f"or as {root}/CLASS/*.jpg to have a fifth of each class held out"
            ),
            root=root,
            is_own_folder=True,
        )

    def load(self, spec: ImageSpec, split: str, data_dir: Path, index_dir: Path) -> Dataset:
        """See `load_folders`."""
        return load_folders(spec, split, data_dir, index_dir)

    def is_prepared(self, spec: ImageSpec, split: str, data_dir: Path, index_dir: Path) -> bool:  # noqa: ARG002
        """See `Family.is_prepared`."""
        return (data_dir / spec.root).is_dir()

    def has_val(self, spec: ImageSpec, data_dir: Path) -> bool:
        """See `Family.has_val`."""
        return has_val(spec, data_dir)

    def has_unlabelled(self, spec: ImageSpec, data_dir: Path) -> bool:
        """See `Family.has_unlabelled`."""
        return has_unlabelled(spec, data_dir)


def load_folders(spec: ImageSpec, split: str, data_dir: Path, index_dir: Path) -> Dataset:
    """One split of class folders, every file validated. Classes are the sorted folder names of the train
    split.

    Raises TargetError for a missing or empty folder, a class that the train split lacks, and damaged files.
    """
    root = data_dir / spec.root
    if not root.is_dir():
        raise TargetError(f"{root}: no such folder; {spec.how_to_prepare}")
    layout = _layout(spec, root)
    folder = layout.folder(split, spec.how_to_prepare)
    beside = [other for other in layout.labelled.values() if other != folder]
    if split == UNLABELLED:
        return load_unlabelled(spec, folder, index_dir, beside=beside)
    classes = class_names(spec, folder, layout.folders.get("train", folder))
    listing = list_images(folder, slug=spec.slug, index_dir=index_dir, beside=beside)
    dataset = _dataset(spec, split, classes, listing)
    dataset = replace(dataset, notes=(*layout.notes, *dataset.notes))
    if folder != root:
        return dataset
    in_test = hold_out(listing.paths, dataset.labels)
    if split == "train":
        return dataset.take(np.flatnonzero(~in_test))
    n_test = in_test.sum()
    note = f"{root}: has no train/ and val/, so a fixed fifth of each class is held out ({n_test} pictures)"
    return replace(dataset.take(np.flatnonzero(in_test)), notes=(*layout.notes, note))


def load_unlabelled(
    spec: ImageSpec, folder: Path, index_dir: Path, *, beside: Sequence[Path] = ()
) -> Dataset:
    """All images below a folder, without labels and classes; `beside` as in `list_images`."""
    listing = list_images(folder, slug=spec.slug, index_dir=index_dir, beside=beside, in_classes=False)
    return to_dataset(listing, spec, UNLABELLED, (), np.full(len(listing.paths), -1, dtype=np.int64))


def has_split(root: Path, split: str) -> bool:
    """Whether an official target's folder of class folders for this split lies under `root`."""
    return any(class_folders(root / name) for name in _FOLDERS[split])


def _layout(spec: ImageSpec, root: Path) -> Layout:
    """How a folder is divided: a user's as `layout_of` finds, an official target's by its official names."""
    if spec.is_own_folder:
        return layout_of(root, videos=False)
    filled = {
        split: [root / name for name in names if class_folders(root / name)]
        for split, names in _FOLDERS.items()
    }
    return Layout(root, {split: folders[0] for split, folders in filled.items() if folders})


def _dataset(spec: ImageSpec, split: str, classes: tuple[str, ...], listing: ImageListing) -> Dataset:
    label_of = {os.fsencode(name): label for label, name in enumerate(classes)}
    labels = [label_of[bytes(path).split(b"/", 1)[0]] for path in listing.paths]
    return to_dataset(listing, spec, split, classes, np.array(labels, dtype=np.int64))
