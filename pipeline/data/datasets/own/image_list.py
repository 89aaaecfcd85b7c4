"""list:FILE, image files and their labels in a CSV or JSON file; the images stay where they are."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

from pipeline.data.datasets.image_files import ImageListing, ImageSpec, list_paths
from pipeline.data.datasets.own.annotations import Annotations, splits_of
from pipeline.data.datasets.own.family import OwnImages
from pipeline.data.datasets.own.read_list import ListedImages, read_list


class ImageList(OwnImages):
    """A user's lists of images."""

    name = "list"
    how_to_prepare = "write a CSV or JSON file with the columns path, label (or labels) and split"

    def lies_there(self, spec: ImageSpec, data_dir: Path) -> bool:
        """See `Family.lies_there`."""
        return (data_dir / spec.root).is_file()

    def has_several_labels(self, spec: ImageSpec) -> bool:
        """See `Family.has_several_labels`."""
        return spec.root.is_file() and _read(spec.root).said.several

    def splits(self, spec: ImageSpec, data_dir: Path) -> Collection[str]:
        """See `OwnImages.splits`."""
        if not self.lies_there(spec, data_dir):
            return ()
        return splits_of(_read(data_dir / spec.root).said.splits or ()).values()

    def annotated(
        self,
        root: Path,
        data_dir: Path,  # noqa: ARG002
        index_dir: Path,
        slug: str,
    ) -> tuple[Annotations, ImageListing]:
        """See `OwnImages.annotated`."""
        listed = _read(root)
        return listed.said, list_paths(root.parent, listed.paths, slug=slug, index_dir=index_dir)


def _read(file: Path) -> ListedImages:
    stat = file.stat()
    return _read_once(file, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4)
def _read_once(file: Path, mtime_ns: int, size: int) -> ListedImages:  # noqa: ARG001 - they are of the key
    return read_list(file)
