"""PASCAL VOC 2007 and 2012 as pictures with several labels each: VOCdevkit's lists and annotations.

A class is present if one of its objects is not marked difficult, and not counted at all, neither as present
nor as absent, if all of them are (VOC's own rule for classification). Departs from the released code: there
such a class counts as absent.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.datasets.dataset import Dataset
from pipeline.data.datasets.image_files import dataset_of, list_named
from pipeline.data.datasets.registry import DatasetSpec, Devkit, target_slug
from sskt.errors import TargetError

CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
IGNORED = -1  # of a class whose objects are all difficult


def load_voc(spec: DatasetSpec, devkit: Devkit, split: str, root: Path, index_dir: Path) -> Dataset:
    """The index of one split; ids are places in its list.

    Raises TargetError for what is missing or damaged.
    """
    year = root / devkit.year
    lists = year / "ImageSets" / "Main" / f"{devkit.train if split == 'train' else devkit.test}.txt"
    try:
        names = lists.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        raise TargetError(f"{lists}: cannot be read ({error}); {spec.how_to_prepare}") from None
    if not names:
        raise TargetError(f"{lists}: names no picture; {spec.how_to_prepare}")
    multi_hot = np.stack([_multi_hot(year / "Annotations" / f"{name}.xml") for name in names])
    paths = [os.fsencode(f"JPEGImages/{name}.jpg") for name in names]
    listing = list_named(year, paths, slug=f"{target_slug(spec.name)}-{split}", index_dir=index_dir)
    multi_hot = multi_hot[listing.ids]
    labels = multi_hot.argmax(axis=1).astype(np.int64)
    return dataset_of(listing, spec, split, CLASSES, labels, multi_hot)


def _multi_hot(path: Path) -> NDArray[np.int8]:
    """What a picture shows of each class: 1 present, 0 absent, -1 difficult only; int8 (20,)."""
    try:
        objects = ET.parse(path).getroot().iter("object")  # noqa: S314
        found: dict[str, list[bool]] = {}
        for each in objects:
            name = (each.findtext("name") or "").strip()
            found.setdefault(name, []).append((each.findtext("difficult") or "0").strip() == "1")
    except (OSError, ET.ParseError) as error:
        raise TargetError(f"{path}: cannot be read ({error}); restore the official annotation") from None
    strange = sorted(set(found) - set(CLASSES))
    if strange:
        raise TargetError(f"{path}: has an object {strange[0]!r}, which is no class of VOC; restore it")
    multi_hot = np.zeros(len(CLASSES), dtype=np.int8)
    for name, difficult in found.items():
        multi_hot[CLASSES.index(name)] = IGNORED if all(difficult) else 1
    return multi_hot
