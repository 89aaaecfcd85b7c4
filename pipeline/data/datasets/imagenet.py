"""ImageNet as class folders, or its validation split as the archives unpack.

The images lie in val/ILSVRC2012_val_00000001.JPEG and on, labelled by ILSVRC2012_devkit_t12/data/ (the ground
truth and meta.mat).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import scipy.io

from pipeline.data.datasets.class_folders import class_names
from pipeline.data.datasets.image_files import ImageSpec
from pipeline.data.datasets.image_folder import has_split
from pipeline.data.datasets.official_lists import (
    ImageList,
    ListedImages,
    official_spec,
    read_lines,
    wrong_line,
)
from sskt.errors import TargetError

_DEVKIT = Path("ILSVRC2012_devkit_t12/data")
_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_SPEC = official_spec(
    "imagenet",
    1000,
    class_folder="WNID",
    archives="the validation pictures into val/ and ILSVRC2012_devkit_t12/",
)


class ImageNet(ListedImages):
    """ILSVRC2012."""

    name, targets = _SPEC.name, (_SPEC,)

    def has_list(self, split: str, root: Path) -> bool:
        """See `ListedImages.has_list`."""
        return split == "test" and (root / _DEVKIT / _GROUND_TRUTH).is_file() and (root / "val").is_dir()

    def read_list(self, spec: ImageSpec, split: str, root: Path) -> ImageList:  # noqa: ARG002
        """The validation images: line n of the ground truth is the ILSVRC2012_ID of image n."""
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
        lines = read_lines(root / _DEVKIT / _GROUND_TRUTH)
        labels = []
        for number, line in enumerate(lines, start=1):
            if not line.isdecimal() or int(line) not in label_of:
                raise wrong_line(
                    root / _DEVKIT / _GROUND_TRUTH, number, line, f"an ILSVRC2012_ID of 1 to {len(classes)}"
                )
            labels.append(label_of[int(line)])
        paths = [f"val/ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, len(lines) + 1)]
        return ImageList(classes, paths, labels)


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
