"""What the two families of videos share: packing and reading."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pipeline.data.datasets.dataset import Dataset, Family
from pipeline.data.datasets.video.dataset import load_videos
from pipeline.data.datasets.video.pack import Packing
from pipeline.data.datasets.video.pack_record import read_record
from pipeline.data.datasets.video.prepare import prepare_videos
from pipeline.data.datasets.video.spec import VideoSpec
from sskt.errors import TargetError

V = TypeVar("V", bound=VideoSpec)


class Videos(Family[V]):
    """Targets of videos."""

    def load(self, spec: V, split: str, data_dir: Path, index_dir: Path) -> Dataset:
        """See `load_videos`."""
        return load_videos(spec, split, data_dir, index_dir)

    def is_prepared(self, spec: V, split: str, data_dir: Path, index_dir: Path) -> bool:  # noqa: ARG002
        """Whether preparing ended well, which packs train and test videos together."""
        try:
            return read_record(spec, data_dir, index_dir) is not None
        except TargetError:  # a damaged record, which using this target will name
            return False

    def prepare(
        self, spec: V, data_dir: Path, index_dir: Path, *, packing: Packing, allow_missing: bool
    ) -> None:
        """See `prepare_videos`."""
        prepare_videos(spec, data_dir, index_dir, packing=packing, allow_missing=allow_missing)
