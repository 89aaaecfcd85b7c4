"""Target datasets: what a name stands for, whether its files are there, and the index of a split."""

from __future__ import annotations

from pathlib import Path

from pipeline.data.datasets import archive
from pipeline.data.datasets.cifar_stl import load_binary
from pipeline.data.datasets.dataset import Dataset
from pipeline.data.datasets.digits import load_digits
from pipeline.data.datasets.image_folder import has_split, load_folders, splits_of
from pipeline.data.datasets.imagenet import has_lists, load_listed
from pipeline.data.datasets.registry import SPLITS, TARGETS, DatasetSpec, parse_target, target_slug
from pipeline.data.datasets.video.dataset import load_videos
from pipeline.data.datasets.video.pack_record import read_record
from pipeline.data.datasets.voc import load_voc
from sskt.errors import TargetError

__all__ = [
    "Dataset",
    "DatasetSpec",
    "has_val",
    "load_dataset",
    "parse_target",
    "prepare",
    "prepared",
    "target_slug",
]


def load_dataset(
    spec: DatasetSpec,
    split: str,
    *,
    data_dir: Path,
    index_dir: Path,
    limit: int | None = None,
    download: bool = True,
) -> Dataset:
    """The validated index of one split ("train", "test", or "val" where `has_val`), or its fixed stratified
    subset of `limit` samples.

    `data_dir` is only read, except that an official archive is downloaded and unpacked there if it is missing
    and `download` allows it. `index_dir` keeps what was learned about picture files, and packed videos; if it
    cannot be written, `notes` of the index says so. Raises TargetError for anything missing or damaged,
    DownloadError if fetching fails.
    """
    if split not in SPLITS and not (split == "val" and has_val(spec, data_dir)):
        raise TargetError(f"{spec.name}: split is {split!r}, expected {' or '.join(SPLITS)}")
    if spec.binary:
        prepare(spec, data_dir, download=download)
        dataset = load_binary(spec, spec.binary, split, data_dir)
    elif spec.videos:
        dataset = load_videos(spec, split, data_dir, index_dir)
    elif spec.devkit:
        assert spec.root is not None  # noqa: S101 - files have a place
        dataset = load_voc(spec, spec.devkit, split, data_dir / spec.root, index_dir)
    elif spec.root:
        root = data_dir / spec.root
        listed = has_lists(spec, split, root) and not has_split(root, split)
        dataset = (load_listed if listed else load_folders)(spec, split, root, index_dir)
    else:
        dataset = load_digits(spec, split)
    return dataset if limit is None else dataset.limit(limit)


def has_val(spec: DatasetSpec, data_dir: Path) -> bool:
    """Whether a target has three splits: a folder of one's own with train, val and test folders."""
    if spec.n_classes is not None or spec.root is None or not (data_dir / spec.root).is_dir():
        return False
    return "val" in splits_of(spec, data_dir / spec.root).folders


def prepare(spec: DatasetSpec, data_dir: Path, *, download: bool = True) -> None:
    """Download and unpack an official archive unless its files are there; folders are the user's to fill."""
    if spec.binary:
        archive.obtain(spec, spec.binary, data_dir, download=download)


def prepared(data_dir: Path, index_dir: Path, split: str = "train") -> list[str]:
    """Registry targets with files of this split under `data_dir`, or videos packed in `index_dir`, by a cheap
    look.

    The digits are left out: they are always there, so listing them would make every bare directory look
    prepared.
    """
    return [name for name, spec in TARGETS.items() if _is_prepared(spec, data_dir, index_dir, split)]


def _is_prepared(spec: DatasetSpec, data_dir: Path, index_dir: Path, split: str) -> bool:
    if spec.devkit:
        return (data_dir / str(spec.root) / spec.devkit.year / "ImageSets" / "Main").is_dir()
    if spec.videos:
        try:
            return read_record(spec, data_dir, index_dir) is not None
        except TargetError:  # a damaged record, which using this target will name
            return False
    if spec.binary:
        try:
            return not archive.missing_files(spec, spec.binary, data_dir)
        except TargetError:  # a file of the wrong length, which using this target will name
            return False
    root = data_dir / str(spec.root)
    return spec.root is not None and (has_split(root, split) or has_lists(spec, split, root))
