"""PASCAL VOC 2007 and 2012 for multi-label classification, from VOCdevkit's lists and annotations.

A class is present if one of its objects is not marked difficult. If all are, it counts neither as present nor
as absent (VOC's own rule for classification). Departs from the released code, where such a class counts as
absent.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.datasets.dataset import Dataset, Family, MultiHot
from pipeline.data.datasets.image_files import ImageSpec, list_paths, to_dataset
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
IGNORED = -1  # a class whose objects are all marked difficult


@dataclass(frozen=True, slots=True, kw_only=True)
class VocSpec(ImageSpec):
    """A year of VOCdevkit, such as VOC2012, and the lists of its splits."""

    year: str
    train: str
    test: str
    is_multilabel: bool = True


def _spec(name: str, year: str, *, train: str, test: str) -> VocSpec:
    return VocSpec(
        name=name,
        family="voc",
        n_classes=len(CLASSES),
        how_to_prepare=(
            f"put the official {year} into DATA_DIR/voc/VOCdevkit/{year}/ (DATA_DIR is --data-dir)"
        ),
        root=Path("voc/VOCdevkit"),
        year=year,
        train=train,
        test=test,
    )


class Voc(Family[VocSpec]):
    """Two years of PASCAL VOC."""

    name = "voc"
    targets = (
        _spec("voc", "VOC2012", train="train", test="val"),
        _spec("voc2007", "VOC2007", train="trainval", test="test"),
    )

    def load(self, spec: VocSpec, split: str, data_dir: Path, index_dir: Path) -> Dataset:
        """See `Family.load`; ids are places in its list."""
        year = data_dir / spec.root / spec.year
        lists = _lists(spec, data_dir) / f"{spec.train if split == 'train' else spec.test}.txt"
        try:
            names = lists.read_text(encoding="ascii").split()
        except (OSError, UnicodeDecodeError) as error:
            raise TargetError(f"{lists}: cannot be read ({error}); {spec.how_to_prepare}") from None
        if not names:
            raise TargetError(f"{lists}: names no picture; {spec.how_to_prepare}")
        multi_hot = np.stack([_multi_hot(year / "Annotations" / f"{name}.xml") for name in names])
        paths = [f"JPEGImages/{name}.jpg" for name in names]
        listing = list_paths(year, paths, slug=f"{spec.slug}-{split}", index_dir=index_dir)
        multi_hot = multi_hot[listing.ids]
        labels = multi_hot.argmax(axis=1).astype(np.int64)
        return to_dataset(listing, spec, split, CLASSES, labels, multi_hot)

    def is_prepared(self, spec: VocSpec, split: str, data_dir: Path, index_dir: Path) -> bool:  # noqa: ARG002
        """See `Family.is_prepared`."""
        return _lists(spec, data_dir).is_dir()


def _multi_hot(path: Path) -> MultiHot:
    """The classes of one image: 1 present, 0 absent, -1 difficult only; int8 (20,)."""
    try:
        objects = ET.parse(path).getroot().iter("object")  # noqa: S314
        difficult: dict[str, list[bool]] = {}
        for each in objects:
            name = (each.findtext("name") or "").strip()
            difficult.setdefault(name, []).append((each.findtext("difficult") or "0").strip() == "1")
    except (OSError, ET.ParseError) as error:
        raise TargetError(f"{path}: cannot be read ({error}); restore the official annotation") from None
    strange = sorted(set(difficult) - set(CLASSES))
    if strange:
        raise TargetError(f"{path}: has an object {strange[0]!r}, which is no class of VOC; restore it")
    multi_hot = np.zeros(len(CLASSES), dtype=np.int8)
    for name, marks in difficult.items():
        multi_hot[CLASSES.index(name)] = IGNORED if all(marks) else 1
    return multi_hot


def _lists(spec: VocSpec, data_dir: Path) -> Path:
    return data_dir / spec.root / spec.year / "ImageSets" / "Main"
