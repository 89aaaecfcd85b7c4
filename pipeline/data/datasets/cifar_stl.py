"""CIFAR-10, CIFAR-100 and STL-10, read into memory from their official binary files.

Nothing about them is kept between runs: reading and hashing a split takes under a second, and so always sees
what is there.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.datasets.archive import ArchiveSpec, Binary, Part, missing_files, obtain
from pipeline.data.datasets.dataset import SPLITS, UNLABELLED, Dataset, DatasetSpec, Family
from pipeline.data.datasets.images import array_dataset
from sskt.errors import TargetError

_SOURCE_SCALE = Fraction(7, 3)  # docs/method.md, section 2.4: 32 -> 74 and 96 -> 224


def _spec(name: str, n_classes: int, side_px: int, binary: Binary) -> ArchiveSpec:
    """The paper's small images: shifted by up to 4 pixels, mirrored or not."""
    archive = binary.url.rpartition("/")[2]
    return ArchiveSpec(
        name=name,
        family="cifar_stl",
        n_classes=n_classes,
        side_px=side_px,
        short_px=side_px,
        plan_kind="pad-crop-flip",
        source_scale=_SOURCE_SCALE,
        how_to_prepare=f"allow the download, or put {archive} from {binary.url} into DATA_DIR",
        pad=4,
        binary=binary,
    )


_CIFAR10 = Binary(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    folder="cifar-10-batches-bin",
    class_names="batches.meta.txt",
    train=tuple(Part(f"data_batch_{batch}.bin", 10_000) for batch in range(1, 6)),
    test=(Part("test_batch.bin", 10_000),),
    label_bytes=1,
)
_CIFAR100 = Binary(
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
    folder="cifar-100-binary",
    class_names="fine_label_names.txt",
    train=(Part("train.bin", 50_000),),
    test=(Part("test.bin", 10_000),),
    label_bytes=2,  # coarse, fine
)
_STL10 = Binary(
    url="http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
    md5="91f7769df0f17e558f3565bffb0c7dfb",
    folder="stl10_binary",
    class_names="class_names.txt",
    train=(Part("train_X.bin", 5_000, "train_y.bin"),),
    test=(Part("test_X.bin", 8_000, "test_y.bin"),),
    unlabelled=(Part("unlabeled_X.bin", 100_000),),
    label_bytes=0,
    first_label=1,
    column_major=True,
)


class CifarStl(Family[ArchiveSpec]):
    """The paper's small-image targets."""

    name = "cifar_stl"
    targets = (
        _spec("cifar10", 10, 32, _CIFAR10),
        _spec("cifar100", 100, 32, _CIFAR100),
        _spec("stl10", 10, 96, _STL10),
    )

    def load(self, spec: ArchiveSpec, split: str, data_dir: Path, index_dir: Path) -> Dataset:  # noqa: ARG002
        """See `Family.load`. Raises TargetError for a wrong length, label or class."""
        binary = spec.binary
        folder = data_dir / binary.folder
        if split == UNLABELLED:
            obtain(spec, data_dir, splits=(UNLABELLED,))
            (part,) = binary.unlabelled
            pixels, _ = _read_pixels(spec, part, folder)
            unknown = np.full(len(pixels), -1, dtype=np.int64)
            return array_dataset(spec.name, split, (), pixels, unknown, np.arange(len(pixels)))
        classes = _class_names(folder / binary.class_names, spec)
        parts = [_read_part(spec, part, folder) for part in binary.parts(split)]
        pixels = np.concatenate([pixels for pixels, _ in parts])
        labels = np.concatenate([labels for _, labels in parts])
        ids = np.arange(len(labels), dtype=np.int64)
        return array_dataset(spec.name, split, classes, pixels, labels, ids)

    def has_unlabelled(self, spec: ArchiveSpec, data_dir: Path) -> bool:  # noqa: ARG002
        """See `Family.has_unlabelled`; its files are unpacked, or downloaded, when they are asked for."""
        return bool(spec.binary.unlabelled)

    def is_prepared(self, spec: ArchiveSpec, split: str, data_dir: Path, index_dir: Path) -> bool:  # noqa: ARG002
        """Whether all files, of labelled images or of others, are there, unpacked and of the right length."""
        try:
            return not missing_files(spec, data_dir, (UNLABELLED,) if split == UNLABELLED else SPLITS)
        except TargetError:  # a file of the wrong length, which using this target will name
            return False

    def obtain(self, spec: ArchiveSpec, data_dir: Path, *, download: bool) -> None:
        """See `pipeline.data.datasets.archive.obtain`."""
        obtain(spec, data_dir, download=download)


def _read_pixels(spec: ArchiveSpec, part: Part, folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pixels uint8 (n, side, side, 3) of one file, and its records (n, bytes)."""
    binary, side = spec.binary, spec.side_px
    n_bytes = part.n_images * (binary.label_bytes + 3 * side**2)
    records = _read(folder / part.pixels, n_bytes).reshape(part.n_images, -1)
    planes = records[:, binary.label_bytes :].reshape(-1, 3, side, side)
    order = (0, 3, 2, 1) if binary.column_major else (0, 2, 3, 1)
    return np.ascontiguousarray(planes.transpose(order)), records


def _read_part(spec: ArchiveSpec, part: Part, folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels uint8 (n, side, side, 3) and labels int64 (n,) of one file."""
    binary = spec.binary
    pixels, records = _read_pixels(spec, part, folder)
    if part.labels:
        label_file = folder / part.labels
        stored = _read(label_file, part.n_images)
    else:
        label_file = folder / part.pixels
        stored = records[:, binary.label_bytes - 1]
    labels = stored.astype(np.int64) - binary.first_label
    outside = np.flatnonzero((labels < 0) | (labels >= (spec.n_classes or 0)))
    if len(outside):
        last = binary.first_label + (spec.n_classes or 0) - 1
        raise TargetError(
            f"{label_file}: record {outside[0]} has label {stored[outside[0]]}, "
            f"expected {binary.first_label} to {last} ({len(outside)} such records); "
            f"move the folder away and run again"
        )
    return pixels, labels


def _read(path: Path, expected_bytes: int) -> NDArray[np.uint8]:
    """A file's bytes, mapped: STL10's unlabelled images are 2.8 GB, and are copied afterwards anyway."""
    try:
        n_bytes = path.stat().st_size
        if n_bytes == expected_bytes:
            return np.memmap(path, dtype=np.uint8, mode="r")
    except OSError as error:
        raise TargetError(
            f"{path}: cannot be read ({error.strerror or error}); restore or allow it"
        ) from None
    raise TargetError(
        f"{path}: has {n_bytes:,} bytes, expected {expected_bytes:,}; move it away and run again"
    )


def _class_names(path: Path, spec: DatasetSpec) -> tuple[str, ...]:
    try:
        names = tuple(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise TargetError(f"{path}: cannot be read ({error}); move it away and run again") from None
    if len(names) != spec.n_classes:
        raise TargetError(
            f"{path}: names {len(names)} classes, expected {spec.n_classes}; move it away and run again"
        )
    return names
