"""Official binary archives: files found, or downloaded, checked and unpacked.

Only the members that are read are unpacked, each beside its destination and then renamed, so that a partial
extraction never looks complete.
"""

from __future__ import annotations

import posixpath
import tarfile
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.datasets.dataset import SPLITS, UNLABELLED, DatasetSpec
from sskt.errors import TargetError


@dataclass(frozen=True, slots=True)
class Part:
    """One binary file of images; `labels` names the file of their labels, None: one precedes each image."""

    pixels: str
    n_images: int
    labels: str | None = None


@dataclass(frozen=True, slots=True)
class Binary:
    """An official binary archive and the layout of its files.

    A record is `label_bytes` bytes, of which the last is the label, then three planes (R, G, B) of a square
    image.
    """

    url: str
    md5: str
    folder: str
    class_names: str
    train: tuple[Part, ...]
    test: tuple[Part, ...]
    label_bytes: int
    unlabelled: tuple[Part, ...] = ()
    first_label: int = 0
    column_major: bool = False  # each plane is stored column by column

    def parts(self, split: str) -> tuple[Part, ...]:
        """The files of one split."""
        return {"train": self.train, "test": self.test, UNLABELLED: self.unlabelled}[split]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveSpec(DatasetSpec):
    """A target that comes as an official binary archive."""

    binary: Binary


def file_sizes(binary: Binary, side_px: int, splits: Sequence[str] = SPLITS) -> dict[str, int | None]:
    """Lengths in bytes of all files that are read; None for the class names, which are text."""
    sizes: dict[str, int | None] = {binary.class_names: None}
    for part in (part for split in splits for part in binary.parts(split)):
        sizes[part.pixels] = part.n_images * (binary.label_bytes + 3 * side_px**2)
        if part.labels:
            sizes[part.labels] = part.n_images
    return sizes


def missing_files(spec: ArchiveSpec, data_dir: Path, splits: Sequence[str] = SPLITS) -> list[str]:
    """Files of these splits that are missing. Raises TargetError for one of the wrong length, which is left
    alone.
    """
    binary, missing = spec.binary, []
    for name, expected in file_sizes(binary, spec.side_px, splits).items():
        path = data_dir / binary.folder / name
        if not path.is_file():
            missing.append(name)
        else:
            _check_size(path, expected, "move it away and run again")
    return missing


def obtain(
    spec: ArchiveSpec, data_dir: Path, *, download: bool = True, splits: Sequence[str] = SPLITS
) -> None:
    """Make the unpacked files of these splits exist under `data_dir`, from the archive there or else from its
    URL.

    Raises TargetError for wrong contents or, without `download`, a missing archive; DownloadError if fetching
    fails or the archive there is not the official one.
    """
    binary, missing = spec.binary, missing_files(spec, data_dir, splits)
    if not missing:
        return
    archive = data_dir / posixpath.basename(binary.url)
    if not archive.is_file() and not download:
        listed = ", ".join(missing)
        raise TargetError(
            f"{data_dir / binary.folder}: {listed} not found for {spec.name}; {spec.how_to_prepare}"
        )
    from sskt.download import fetch  # imports requests, which is slow

    fetch(binary.url, archive, md5=binary.md5)
    try:
        _unpack(spec, archive, missing)
    except OSError as error:
        reason = error.strerror or str(error)
        raise TargetError(
            f"{archive}: cannot be unpacked into {data_dir} ({reason}); make room or allow writing there"
        ) from None


def _unpack(spec: ArchiveSpec, archive: Path, names: list[str]) -> None:
    """Unpack the named members of an archive into the target's folder beside it."""
    binary = spec.binary
    expected = file_sizes(binary, spec.side_px, (*SPLITS, UNLABELLED))
    folder = archive.parent / binary.folder
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=f".{binary.folder}.tmp-") as temporary:
        wanted = {posixpath.join(binary.folder, name) for name in names}
        absent = wanted - _extract(archive, wanted, Path(temporary))
        if absent:
            listed = ", ".join(sorted(absent))
            raise TargetError(
                f"{archive}: holds no {listed}, as {spec.name} expects; remove it and run again"
            )
        unpacked = Path(temporary) / binary.folder
        for name in names:
            _check_size(
                unpacked / name, expected[name], f"{archive.name} is a wrong archive: remove it and run again"
            )
        folder.mkdir(exist_ok=True)
        for name in names:
            (unpacked / name).replace(folder / name)


def _extract(archive: Path, wanted: set[str], into: Path) -> set[str]:
    """Extract the wanted regular files; returns the names of those in the archive."""
    found: set[str] = set()
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = posixpath.normpath(member.name)
                if name in wanted and member.isfile():
                    tar.extract(member, into, filter="data")
                    found.add(name)
                    if found == wanted:
                        break
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise TargetError(
            f"{archive}: is not a sound tar archive ({error}); remove it and run again"
        ) from None
    return found


def _check_size(path: Path, expected: int | None, remedy: str) -> None:
    found = path.stat().st_size
    if expected is not None and found != expected:
        raise TargetError(f"{path}: has {found:,} bytes, expected {expected:,}; {remedy}")
