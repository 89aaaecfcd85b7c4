"""A dataset's images: in memory, or encoded on a disk, each a file, or a stretch of bytes in a larger one."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.data.datasets import decode
from pipeline.data.datasets.bit_depth import FULL
from pipeline.data.datasets.dataset import Dataset, Labels, Pixels, Positions
from pipeline.data.datasets.remote_pack import Pack
from sskt.errors import TargetError, shown


@dataclass(frozen=True, slots=True, eq=False)
class ArrayImages:
    """Images of one size in memory: `pixels` uint8 (N_full, H, W, 3), and each row's position in it, int64
    (N,).
    """

    source: str  # e.g. "cifar10 train"
    pixels: Pixels
    positions: Positions

    def name_of(self, row: int) -> str:
        """See `Images.name_of`."""
        return f"{self.source} picture {self.positions[row]}"

    def pixels_of(self, row: int) -> Pixels:
        """See `Images.pixels_of`."""
        image: Pixels = self.pixels[self.positions[row]].copy()
        return image

    def encoded(self, row: int) -> bytes:
        """See `Images.encoded`."""
        return decode.to_png(self.pixels_of(row))

    def stack(self, rows: Positions) -> Pixels:
        """See `Images.stack`."""
        return self.pixels[self.positions[rows]]

    def take(self, rows: Positions) -> ArrayImages:
        """See `Images.take`; the pixels are shared, not copied."""
        return replace(self, positions=self.positions[rows])


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class EncodedImages(ABC):
    """N encoded images.

    paths: bytes (N,), their names, file-system encoded. transcode: bool (N,), whether Pillow decodes an image
    for all renderers, which are handed a plain PNG (see `decode.Inspection`). depths: uint8 (N,), the bits of
    the values of 16-bit images (see `bit_depth`).
    """

    paths: NDArray[np.bytes_]
    transcode: NDArray[np.bool_]
    depths: NDArray[np.uint8]

    @abstractmethod
    def name_of(self, row: int) -> str:
        """See `Images.name_of`."""

    @abstractmethod
    def read(self, row: int) -> bytes:
        """The bytes of an image as they lie on the disk. Raises OSError."""

    def take(self, rows: Positions) -> Self:
        """See `Images.take`."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return replace(self, **{name: v[rows] for name, v in values.items() if isinstance(v, np.ndarray)})

    def decoded(self, transcode: NDArray[np.bool_], depths: NDArray[np.uint8]) -> Self:
        """The same images, decoded so."""
        return replace(self, transcode=transcode, depths=depths)

    @property
    def depth(self) -> int | None:
        """How many bits the values of its 16-bit images are read as; None if it has none."""
        shallow = self.depths[self.depths != FULL]
        if len(shallow):
            return int(shallow[0])
        rows = map(int, np.flatnonzero(self.transcode))
        return FULL if any(decode.inspect(self._read(row)).bits for row in rows) else None

    def pixels_of(self, row: int) -> NDArray[np.uint8]:
        """See `Images.pixels_of`. Raises TargetError if the image cannot be read any more."""
        encoded = self._read(row)
        try:
            return decode.to_pixels(encoded, int(self.depths[row]))
        except (OSError, ValueError, SyntaxError) as error:
            raise TargetError(
                f"{self.name_of(row)}: is damaged since it was indexed ({error}); restore it"
            ) from None

    def encoded(self, row: int) -> bytes:
        """See `Images.encoded`. Raises TargetError if the image cannot be read any more."""
        return decode.to_png(self.pixels_of(row)) if self.transcode[row] else self._read(row)

    def stack(self, rows: Positions) -> NDArray[np.uint8]:
        """See `Images.stack`."""
        return np.stack([self.pixels_of(int(row)) for row in rows])

    def _read(self, row: int) -> bytes:
        try:
            return self.read(row)
        except OSError as error:
            reason = error.strerror or str(error)
            raise TargetError(
                f"{self.name_of(row)}: cannot be read since it was indexed ({reason}); restore it"
            ) from None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FileImages(EncodedImages):
    """Image files below `root`, to which `paths` are relative; a path may be absolute."""

    root: Path

    @classmethod
    def below(cls, root: Path, paths: Sequence[bytes]) -> Self:
        """Files of which nothing but their place is known yet."""
        return cls(**_unknown(paths), root=root)

    def name_of(self, row: int) -> str:
        """See `Images.name_of`."""
        return shown(str(self.path_of(row)))

    def path_of(self, row: int) -> Path:
        """Where the file lies."""
        return self.root / os.fsdecode(bytes(self.paths[row]))

    def read(self, row: int) -> bytes:
        """See `EncodedImages.read`."""
        return self.path_of(row).read_bytes()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PackedImages(EncodedImages):
    """Images that lie one behind another in a few large files, `packs`.

    paths: the path of the file below `root`, a slash and the image's name there. pack: int64 (N,), which
    file. begins, lengths: int64 (N,), the stretch of bytes there.
    """

    root: Path
    packs: tuple[Pack, ...]
    pack: NDArray[np.int64]
    begins: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @classmethod
    def lying_in(
        cls,
        root: Path,
        packs: Sequence[Pack],
        pack: NDArray[np.int64],
        names: Sequence[str],
        begins: NDArray[np.int64],
        lengths: NDArray[np.int64],
    ) -> Self:
        """Images of which nothing but their place is known yet."""
        return cls(
            **_unknown([os.fsencode(name) for name in names]),
            root=root,
            packs=tuple(packs),
            pack=pack,
            begins=begins,
            lengths=lengths,
        )

    def name_of(self, row: int) -> str:
        """See `Images.name_of`."""
        return shown(str(self.root / os.fsdecode(bytes(self.paths[row]))))

    def read(self, row: int) -> bytes:
        """See `EncodedImages.read`. Raises OSError for a file that has become shorter, too."""
        with self.packs[self.pack[row]].open("rb") as opened:
            opened.seek(int(self.begins[row]))
            encoded: bytes = opened.read(int(self.lengths[row]))
        if len(encoded) != self.lengths[row]:
            raise OSError(
                f"the file ends within it, {len(encoded):,} of {self.lengths[row]:,} bytes are there"
            )
        return encoded


def array_dataset(
    target: str,
    split: str,
    classes: tuple[str, ...],
    pixels: Pixels,
    labels: Labels,
    ids: NDArray[np.int64],
) -> Dataset:
    """A dataset of images in memory.

    pixels: uint8 (N_full, H, W, 3). labels: int64 (N_full,). ids: int64 (N,), the rows of both that belong to
    this split.
    """
    contents = b"".join(decode.content_of(pixels[i].data) for i in ids)
    return Dataset(
        target=target,
        split=split,
        kind="array",
        classes=classes,
        ids=ids,
        labels=labels[ids],
        sizes=np.tile(np.array(pixels.shape[1:3], dtype=np.int32), (len(ids), 1)),
        contents=np.frombuffer(contents, dtype=np.uint8).reshape(len(ids), 16),
        access=ArrayImages(f"{target} {split}", pixels, ids),
    )


def _unknown(paths: Sequence[bytes]) -> dict[str, Any]:
    """The fields of `EncodedImages`, for images not looked at yet."""
    n = len(paths)
    return {
        "paths": np.array(paths, dtype=np.bytes_),
        "transcode": np.zeros(n, dtype=bool),
        "depths": np.full(n, FULL, dtype=np.uint8),
    }
