"""Target datasets: what a name stands for, whether its files are there, and each split as a `Dataset`."""

from __future__ import annotations

from pathlib import Path

from pipeline.data.datasets.cifar_stl import CifarStl
from pipeline.data.datasets.class_folders import class_folders
from pipeline.data.datasets.dataset import (
    SPLITS,
    UNLABELLED,
    UNLABELLED_VIDEOS,
    Dataset,
    DatasetSpec,
    Labels,
    Mask,
    MultiHot,
    Pixels,
    Positions,
)
from pipeline.data.datasets.digits import Digits
from pipeline.data.datasets.image_folder import ImageFolder
from pipeline.data.datasets.imagenet import ImageNet
from pipeline.data.datasets.images import ArrayImages, EncodedImages, FileImages
from pipeline.data.datasets.joined import JoinedImages, Parts, Placed, join
from pipeline.data.datasets.left_out import UnusableFiles
from pipeline.data.datasets.named_files import NamedFiles, list_named_files
from pipeline.data.datasets.named_images import load_named_images
from pipeline.data.datasets.own.hf_dataset import HfDataset
from pipeline.data.datasets.own.image_list import ImageList
from pipeline.data.datasets.own.tar_shards import TarShards
from pipeline.data.datasets.places365 import Places365
from pipeline.data.datasets.registry import (
    TARGETS,
    family_of,
    parse_target,
    path_families,
    path_family,
    register,
    target_slug,
)
from pipeline.data.datasets.remarks import empty_classes, same_bytes
from pipeline.data.datasets.unlabelled_folder import UnlabelledFolder
from pipeline.data.datasets.video.ccv import Ccv
from pipeline.data.datasets.video.dataset import Packs, first_frames, frames_dataset, join_videos
from pipeline.data.datasets.video.folder import UnlabelledVideos, VideoFolder
from pipeline.data.datasets.video.named import load_named_videos, recorded_packing
from pipeline.data.datasets.video.official import OfficialVideos
from pipeline.data.datasets.video.pack import Packing
from pipeline.data.datasets.voc import Voc
from sskt.errors import TargetError

__all__ = [
    "SPLITS",
    "TARGETS",
    "UNLABELLED",
    "UNLABELLED_VIDEOS",
    "ArrayImages",
    "Dataset",
    "DatasetSpec",
    "EncodedImages",
    "FileImages",
    "JoinedImages",
    "Labels",
    "Mask",
    "MultiHot",
    "NamedFiles",
    "Packing",
    "Packs",
    "Parts",
    "Pixels",
    "Placed",
    "Positions",
    "UnusableFiles",
    "class_folders",
    "empty_classes",
    "family_of",
    "first_frames",
    "frames_dataset",
    "has_unlabelled",
    "has_val",
    "join",
    "join_videos",
    "list_named_files",
    "load_dataset",
    "load_named_images",
    "load_named_videos",
    "parse_target",
    "path_families",
    "path_family",
    "prepared",
    "recorded_packing",
    "same_bytes",
    "target_slug",
]

for _family in (  # in the order in which messages and `sskt targets` list them
    CifarStl(),
    ImageNet(),
    Places365(),
    Voc(),
    OfficialVideos(),
    Ccv(),
    Digits(),
    ImageFolder(),
    ImageList(),
    TarShards(),
    HfDataset(),
    VideoFolder(),
    UnlabelledFolder(),
    UnlabelledVideos(),
):
    register(_family)


def load_dataset(
    spec: DatasetSpec,
    split: str,
    *,
    data_dir: Path,
    index_dir: Path,
    limit: int | None = None,
    download: bool = True,
) -> Dataset:
    """One split ("train", "test", "val" where `has_val`, or "unlabelled" where `has_unlabelled`), validated,
    or its fixed stratified subset of `limit` samples.

    `data_dir` is only read, except that an official archive is downloaded and unpacked there if it is missing
    and `download` allows it. `index_dir` keeps what was learned about image files, and packed videos; if it
    cannot be written, the dataset's `notes` say so. Raises TargetError for anything missing or damaged,
    DownloadError if fetching fails.
    """
    more = {"val": has_val, UNLABELLED: has_unlabelled}
    if split not in SPLITS and not (split in more and more[split](spec, data_dir)):
        raise TargetError(f"{spec.name}: split is {split!r}, expected {' or '.join(SPLITS)}")
    family = family_of(spec)
    family.obtain(spec, data_dir, download=download)
    dataset = family.load(spec, split, data_dir, index_dir)
    return dataset if limit is None else dataset.limit(limit)


def has_val(spec: DatasetSpec, data_dir: Path) -> bool:
    """Whether a target has three splits: a user's folder that holds train, val and test folders."""
    return family_of(spec).has_val(spec, data_dir)


def has_unlabelled(spec: DatasetSpec, data_dir: Path) -> bool:
    """Whether a target has samples without labels of its own, the split "unlabelled"."""
    return family_of(spec).has_unlabelled(spec, data_dir)


def prepared(data_dir: Path, index_dir: Path, split: str = "train") -> list[str]:
    """Registered targets with files of this split under `data_dir`, or videos packed in `index_dir`, by a
    cheap look.

    Bundled targets are left out: they are always there, so listing them would make every bare directory look
    prepared.
    """
    return [name for name, spec in TARGETS.items() if _is_prepared(spec, split, data_dir, index_dir)]


def _is_prepared(spec: DatasetSpec, split: str, data_dir: Path, index_dir: Path) -> bool:
    family = family_of(spec)
    return not family.is_bundled and family.is_prepared(spec, split, data_dir, index_dir)
