"""unlabelled:PATH, any folder of images without labels, to be trained on beside a target's own images."""

from __future__ import annotations

from pathlib import Path

from pipeline.data.datasets.dataset import UNLABELLED, Dataset, Family, no_target, own_folder
from pipeline.data.datasets.image_files import ImageSpec
from pipeline.data.datasets.image_folder import load_unlabelled
from sskt.errors import TargetError, shown


class UnlabelledFolder(Family[ImageSpec]):
    """Folders of images without labels, of which all images below are taken. There are no other splits."""

    name, is_path, has_labels = UNLABELLED, True, False

    def from_path(self, path: str) -> ImageSpec:
        """See `Family.from_path`."""
        root = own_folder(UNLABELLED, path)
        return ImageSpec(
            name=f"{UNLABELLED}:{root.name}",
            family=UNLABELLED,
            n_classes=None,
            how_to_prepare=f"put images anywhere below {root}",
            root=root,
            is_own_folder=True,
        )

    def load(self, spec: ImageSpec, split: str, data_dir: Path, index_dir: Path) -> Dataset:
        """See `Family.load`."""
        root = data_dir / spec.root
        if split != UNLABELLED:
            raise TargetError(no_target(spec))
        if not root.is_dir():
            raise TargetError(f"{shown(str(root))}: no such folder; {spec.how_to_prepare}")
        return load_unlabelled(spec, root, index_dir)

    def is_prepared(self, spec: ImageSpec, split: str, data_dir: Path, index_dir: Path) -> bool:  # noqa: ARG002
        """See `Family.is_prepared`."""
        return (data_dir / spec.root).is_dir()

    def has_unlabelled(self, spec: ImageSpec, data_dir: Path) -> bool:  # noqa: ARG002
        """See `Family.has_unlabelled`."""
        return True
