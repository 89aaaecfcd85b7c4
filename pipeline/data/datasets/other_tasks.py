"""Tasks that this program does not do, by what gives them away: the names of data sets, and folders beside
images that hold boxes or masks. Trained on as classes, those would be a student that tells photographs from
their masks.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from sskt.errors import TargetError

SCOPE = "sskt classifies whole images and videos: detection, segmentation and regression are out of scope"

_TARGETS = {
    "ade20k", "cityscapes", "coco", "coco2014", "coco2017", "kitti", "lvis", "nyu", "objects365", "oid",
    "sa1b", "widerface",
}  # fmt: skip
_IMAGES = {"images", "image", "img", "imgs", "jpegimages", "leftimg8bit"}
_ANSWERS = {
    "annotation", "annotations", "bboxes", "boxes", "gtfine", "label", "labels", "mask", "masks",
    "segmentationclass", "segmentationobject",
}  # fmt: skip


def names_other_task(target: str) -> str:
    """The end of a message about an unknown target: why it is none, if its name tells; else nothing."""
    known = target.casefold().replace("-", "").replace("_", "") in _TARGETS
    return f"; {SCOPE}" if known else ""


def require_classes(folder: Path, names: Collection[str]) -> None:
    """Raise TargetError if the folders `names` in `folder` are no classes, but images and boxes or masks."""
    plain = {name.casefold() for name in names}
    if plain & _IMAGES and plain & _ANSWERS and plain <= _IMAGES | _ANSWERS:
        raise TargetError(
            f"{folder}: {' and '.join(f'{name}/' for name in sorted(names))} are images with boxes or masks, "
            f"expected a folder per class; {SCOPE}"
        )
