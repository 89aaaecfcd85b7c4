"""Targets whose pictures fit in memory: CIFAR-10, CIFAR-100 and STL-10 from their official binary files.

Nothing about them is kept between runs: reading and hashing a split takes under a second, and so always sees
what is there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.datasets.archive import file_sizes
from pipeline.data.datasets.dataset import ArrayImages, Dataset
from pipeline.data.datasets.decode import content_of
from pipeline.data.datasets.registry import Binary, DatasetSpec, Part
from sskt.errors import TargetError


def load_binary(spec: DatasetSpec, binary: Binary, split: str, data_dir: Path) -> Dataset:
    """The index of one split, from unpacked files. Raises TargetError for a wrong length, label or class."""
    folder = data_dir / binary.folder
    classes = _class_names(folder / binary.class_names, spec)
    parts = [_read_part(spec, binary, part, folder) for part in binary.parts(split)]
    pixels = np.concatenate([pixels for pixels, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])
    return array_dataset(spec, split, classes, pixels, labels, np.arange(len(labels), dtype=np.int64))


def array_dataset(
    spec: DatasetSpec,
    split: str,
    classes: tuple[str, ...],
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int64],
    ids: NDArray[np.int64],
) -> Dataset:
    """An index over pictures in memory: pixels uint8 (N_full, H, W, 3), labels int64 (N_full,), ids (N,) that
    are rows of both.
    """
    contents = b"".join(content_of(pixels[i].data) for i in ids)
    return Dataset(
        target=spec.name,
        split=split,
        kind="array",
        classes=classes,
        ids=ids,
        labels=labels[ids],
        sizes=np.tile(np.array(pixels.shape[1:3], dtype=np.int32), (len(ids), 1)),
        contents=np.frombuffer(contents, dtype=np.uint8).reshape(len(ids), 16),
        access=ArrayImages(f"{spec.name} {split}", pixels, ids),
    )


def _read_part(
    spec: DatasetSpec, binary: Binary, part: Part, folder: Path
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels uint8 (n, side, side, 3) and labels int64 (n,) of one file."""
    side = spec.side_px
    sizes = file_sizes(binary, side)
    records = _read(folder / part.pixels, sizes[part.pixels]).reshape(part.n_images, -1)
    planes = records[:, binary.label_bytes :].reshape(-1, 3, side, side)
    pixels = np.ascontiguousarray(planes.transpose((0, 3, 2, 1) if binary.column_major else (0, 2, 3, 1)))
    if part.labels:
        label_file = folder / part.labels
        stored = _read(label_file, sizes[part.labels])
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


def _read(path: Path, expected_bytes: int | None) -> NDArray[np.uint8]:
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise TargetError(
            f"{path}: cannot be read ({error.strerror or error}); restore or allow it"
        ) from None
    if len(data) != expected_bytes:
        raise TargetError(
            f"{path}: has {len(data):,} bytes, expected {expected_bytes:,}; move it away and run again"
        )
    return data


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
