"""Places365 as class folders, or as the archives unpack.

Images lie in data_256_standard/ (or data_large_standard/) and val_256/ (or val_large/), labelled by
places365_train_standard.txt, places365_val.txt and categories_places365.txt.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.data.datasets.image_files import ImageSpec
from pipeline.data.datasets.official_lists import (
    ImageList,
    ListedImages,
    official_spec,
    read_lines,
    wrong_line,
)
from sskt.errors import TargetError

_CATEGORIES = "categories_places365.txt"
_LISTS = {  # list, and the folders its paths may begin in: the small images first
    "train": ("places365_train_standard.txt", ("data_256_standard", "data_large_standard")),
    "test": ("places365_val.txt", ("val_256", "val_large")),
}
_SPEC = official_spec(
    "places365",
    365,
    class_folder="CLASS",
    archives="data_256_standard/, val_256/ and the lists (places365_train_standard.txt, ...)",
)


class Places365(ListedImages):
    """Places365-Standard."""

    name, targets = _SPEC.name, (_SPEC,)

    def has_list(self, split: str, root: Path) -> bool:
        """See `ListedImages.has_list`."""
        name, folders = _LISTS[split]
        return (root / name).is_file() and any((root / folder).is_dir() for folder in folders)

    def read_list(self, spec: ImageSpec, split: str, root: Path) -> ImageList:
        """See `ListedImages.read_list`."""
        classes = _categories(spec, root / _CATEGORIES)
        name, folders = _LISTS[split]
        folder = next(folder for folder in folders if (root / folder).is_dir())
        paths, labels = [], []
        for number, line in enumerate(read_lines(root / name), start=1):
            path, _, label = line.rpartition(" ")
            if not path or not label.isdecimal() or int(label) >= len(classes):
                raise wrong_line(root / name, number, line, f"a path and a label of 0 to {len(classes) - 1}")
            paths.append(f"{folder}/{path.lstrip('/')}")
            labels.append(int(label))
        return ImageList(classes, paths, labels)


def _categories(spec: ImageSpec, path: Path) -> tuple[str, ...]:
    """Class names as the class folders have them: "/a/arena/hockey 15" is class 15, "arena-hockey"."""
    classes: list[str] = []
    for number, line in enumerate(read_lines(path), start=1):
        name, _, label = line.rpartition(" ")
        if name.count("/") < 2 or label != str(len(classes)):
            raise wrong_line(path, number, line, f"/LETTER/CATEGORY {len(classes)}")
        classes.append(name.split("/", 2)[2].replace("/", "-"))
    if len(classes) != spec.n_classes:
        raise TargetError(
            f"{path}: {len(classes)} categories, expected {spec.n_classes}; restore the official file"
        )
    return tuple(classes)
