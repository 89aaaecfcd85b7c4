"""What the families of a user's own lists, shards and tables have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from pathlib import Path

from pipeline.data.datasets.dataset import UNLABELLED, Dataset, Family, own_folder
from pipeline.data.datasets.folder_splits import VAL
from pipeline.data.datasets.image_files import ImageListing, ImageSpec
from pipeline.data.datasets.own.annotations import Annotations, check
from sskt.errors import TargetError, shown


class OwnImages(Family[ImageSpec]):
    """A user's images that no class folders hold. All splits are validated together."""

    is_path = True
    what = "file"
    how_to_prepare: str

    @abstractmethod
    def splits(self, spec: ImageSpec, data_dir: Path) -> Collection[str]:
        """The splits that are named; none if none is, or nothing is there."""

    @abstractmethod
    def annotated(
        self, root: Path, data_dir: Path, index_dir: Path, slug: str
    ) -> tuple[Annotations, ImageListing]:
        """What is said of all images at `root`, and those that can be used, with their rows there as ids;
        `slug` is of the names of what is kept in `index_dir`; `data_dir` holds what is fetched.
        """

    def from_path(self, path: str) -> ImageSpec:
        """See `Family.from_path`."""
        return self.spec_at(own_folder(self.name, path, self.what))

    def spec_at(self, root: Path) -> ImageSpec:
        """The spec of a user's images at `root`."""
        return ImageSpec(
            name=f"{self.name}:{root.name}",
            family=self.name,
            n_classes=None,
            how_to_prepare=self.how_to_prepare,
            root=root,
            is_own_folder=True,
        )

    def load(self, spec: ImageSpec, split: str, data_dir: Path, index_dir: Path) -> Dataset:
        """See `Family.load`."""
        if not self.lies_there(spec, data_dir):
            raise TargetError(f"{shown(str(spec.root))}: no such {self.what}; {spec.how_to_prepare}")
        said, listing = self.annotated(spec.root, data_dir, index_dir, spec.slug)
        listing.notes[:0] = said.notes
        return check(said, labelled=split != UNLABELLED).dataset(spec, split, listing)

    def is_prepared(self, spec: ImageSpec, split: str, data_dir: Path, index_dir: Path) -> bool:  # noqa: ARG002
        """See `Family.is_prepared`."""
        return self.lies_there(spec, data_dir)

    def has_val(self, spec: ImageSpec, data_dir: Path) -> bool:
        """See `Family.has_val`."""
        return VAL in self.splits(spec, data_dir)

    def has_unlabelled(self, spec: ImageSpec, data_dir: Path) -> bool:
        """See `Family.has_unlabelled`."""
        return UNLABELLED in self.splits(spec, data_dir)

    def pool_split(self, spec: ImageSpec, data_dir: Path) -> str:
        """See `Family.pool_split`."""
        return UNLABELLED if set(self.splits(spec, data_dir)) == {UNLABELLED} else "train"
