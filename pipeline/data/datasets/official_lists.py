"""Official targets whose archives unpack into no class folders: image paths and labels stand in lists.

Where the user has sorted the images into class folders, those are read instead. Classes have the names and
the order of the class folders, so that either form gives the same labels.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.datasets.dataset import Dataset, Family
from pipeline.data.datasets.image_files import ImageSpec, list_paths, to_dataset
from pipeline.data.datasets.image_folder import has_split, load_folders
from sskt.errors import TargetError


@dataclass(frozen=True, slots=True)
class ImageList:
    """What lists say: class names in label order, the images' paths below the root, their labels."""

    classes: tuple[str, ...]
    paths: list[str]
    labels: list[int]


def official_spec(name: str, n_classes: int, *, class_folder: str, archives: str) -> ImageSpec:
    """The spec of a target that lies in DATA_DIR/NAME as class folders, or as its `archives` unpack."""
    paths = " and ".join(f"DATA_DIR/{name}/{split}/{class_folder}/" for split in ("train", "val"))
    return ImageSpec(
        name=name,
        family=name,
        n_classes=n_classes,
        how_to_prepare=(
            f"put the official pictures into {paths}, or unpack {archives} there (DATA_DIR is --data-dir)"
        ),
        root=Path(name),
    )


class ListedImages(Family[ImageSpec]):
    """The family of one target of class folders or lists."""

    @abstractmethod
    def has_list(self, split: str, root: Path) -> bool:
        """Whether the lists of a split, and the folder of its images, lie under `root`."""

    @abstractmethod
    def read_list(self, spec: ImageSpec, split: str, root: Path) -> ImageList:
        """Read the lists of a split. Raises TargetError if they cannot be read, or contradict each other."""

    def load(self, spec: ImageSpec, split: str, data_dir: Path, index_dir: Path) -> Dataset:
        """See `Family.load`; of images that are listed, ids are places in the list."""
        root = data_dir / spec.root
        if has_split(root, split) or not self.has_list(split, root):
            return load_folders(spec, split, data_dir, index_dir)
        images = self.read_list(spec, split, root)
        listing = list_paths(root, images.paths, slug=f"{spec.slug}-{split}", index_dir=index_dir)
        labels = np.array(images.labels, dtype=np.int64)[listing.ids]
        return to_dataset(listing, spec, split, images.classes, labels)

    def is_prepared(self, spec: ImageSpec, split: str, data_dir: Path, index_dir: Path) -> bool:  # noqa: ARG002
        """See `Family.is_prepared`."""
        root = data_dir / spec.root
        return has_split(root, split) or self.has_list(split, root)


def read_lines(path: Path) -> list[str]:
    """The lines of an official list, at least one. Raises TargetError if it cannot be read."""
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


def wrong_line(path: Path, number: int, line: str, expected: str) -> TargetError:
    """The error to raise for a line that is not as `expected`."""
    return TargetError(f"{path}: line {number} is {line!r}, expected {expected}; restore the official file")
