"""A packed video: equal-sized JPEG frames, concatenated, with an offset table.

Layout, little endian: the frames; n + 1 offsets (u64), where each begins and the last ends; and at the very
end `_TAIL`, or `_TAIL_2` if frames were left out. A pack is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cache import write_durably
from pipeline.data.datasets.video.decode import decode_frames, frame_files
from sskt.errors import TargetError

SUFFIX = ".frames"  # follows the video's own name

# n, height, width, short_px, quality, bytes and mtime_ns of the video, content, magic
_TAIL, _MAGIC = struct.Struct("<IIIIIQq16s8s"), b"SSKTvid1"
# the same with `every` after the quality, where it is not 1
_TAIL_2, _MAGIC_2 = struct.Struct("<IIIIIIQq16s8s"), b"SSKTvid2"


@dataclass(frozen=True, slots=True)
class Packing:
    """How frames are packed: resized to a short side of `short_px` if it is longer, as JPEG of a quality from
    1 to 100; the first of each `every` frames, None for as many as a target has by default.
    """

    short_px: int = 128
    quality: int = 90
    every: int | None = None

    @classmethod
    def recorded(cls, packing: Mapping[str, int]) -> Self:
        """Read plain data, today's or from before frames could be left out. Raises TypeError for others."""
        return cls(**{"every": 1, **packing})

    def settled(self, every: int) -> Packing:
        """With `every` of its own, or this one."""
        return self if self.every is not None else replace(self, every=every)

    def frame(self, image: Image.Image, size: tuple[int, int] | None) -> tuple[bytes, tuple[int, int]]:
        """One frame's JPEG file and its size, (width, height), which is `size` if that is given."""
        if size is None:
            scale = min(1.0, self.short_px / min(image.size))
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        if image.size != size:
            image = image.resize(size, Image.Resampling.BILINEAR)  # averages over what it shrinks
        out = io.BytesIO()
        image.save(out, format="JPEG", quality=self.quality)
        return out.getvalue(), size


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells a changed video from the one that was packed."""

    nbytes: int
    mtime_ns: int

    @classmethod
    def of(cls, source: Path) -> Stamp:
        """Stamp a file, or a folder of frames by the sum of lengths and the latest time. Raises OSError if
        there is none.
        """
        files = frame_files(source) if source.is_dir() else [source]
        stats = [path.stat() for path in files] or [source.stat()]
        return cls(sum(s.st_size for s in stats), max(s.st_mtime_ns for s in stats))


@dataclass(frozen=True, slots=True)
class PackInfo:
    """A pack's own description."""

    n_frames: int
    height: int
    width: int
    packing: Packing
    stamp: Stamp  # of the video when it was packed
    content: bytes  # first 16 bytes of the sha256 of offsets and frames

    @property
    def tail_nbytes(self) -> int:
        """Bytes of the pack's tail."""
        return _TAIL.size if self.packing.every == 1 else _TAIL_2.size


def write_pack(source: Path, path: Path, packing: Packing) -> PackInfo:
    """Decode a video and pack its frames at `path`.

    Raises UnreadableError if any frame cannot be decoded, OSError if the pack
    cannot be written; nothing is left behind then.
    """
    packing, stamp = packing.settled(1), Stamp.of(source)
    frames: list[bytes] = []
    size: tuple[int, int] | None = None
    for number, image in enumerate(decode_frames(source)):  # all, which checks them
        if number % (packing.every or 1) == 0:
            frame, size = packing.frame(image, size)  # all of the first one's size
            frames.append(frame)
    assert size is not None  # noqa: S101 - a video without frames is unreadable
    offsets = np.cumsum([0, *map(len, frames)], dtype="<u8").tobytes()
    digest = hashlib.sha256(offsets)
    for frame in frames:
        digest.update(frame)
    width, height = size
    packed = PackInfo(len(frames), height, width, packing, stamp, digest.digest()[:16])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, *frames, offsets, _tail_of(packed))
    return packed


def read_pack(path: Path) -> PackInfo | None:
    """Read the description of the pack at `path`; None if there is no complete pack."""
    try:
        with path.open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - _TAIL_2.size))
            info = _parse_tail(file.read())
            if info is None or length < info.tail_nbytes + 8 * (info.n_frames + 1):
                return None
            file.seek(length - info.tail_nbytes - 8)
            end = int.from_bytes(file.read(8), "little")
    except OSError:
        return None
    return info if end + 8 * (info.n_frames + 1) + info.tail_nbytes == length else None


def is_sound(path: Path, packed: PackInfo) -> bool:
    """Whether every byte of a pack is as written."""
    data = path.read_bytes()
    frames_end = len(data) - packed.tail_nbytes - 8 * (packed.n_frames + 1)
    digest = hashlib.sha256(data[frames_end : len(data) - packed.tail_nbytes])
    digest.update(data[:frames_end])
    return digest.digest()[:16] == packed.content


class OpenPack:
    """A pack opened for reading its frames."""

    def __init__(self, path: Path, packed: PackInfo) -> None:
        """Raises TargetError if the file is no longer that pack."""
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise TargetError(f"{path}: cannot be read ({error}); run sskt prepare again") from None
        if _parse_tail(self._data[-_TAIL_2.size :]) != packed:
            raise TargetError(f"{path}: is another pack than the one that was indexed; start again")
        table = len(self._data) - packed.tail_nbytes - 8 * (packed.n_frames + 1)
        self._offsets: NDArray[np.uint64] = np.frombuffer(
            self._data, dtype="<u8", count=packed.n_frames + 1, offset=table
        )

    def frame(self, number: int) -> bytes:
        """One frame's JPEG file."""
        start, end = (int(v) for v in self._offsets[number : number + 2])
        return self._data[start:end]


def _tail_of(packed: PackInfo) -> bytes:
    packing, stamp = packed.packing, packed.stamp
    before = (packed.n_frames, packed.height, packed.width, packing.short_px, packing.quality)
    after = (stamp.nbytes, stamp.mtime_ns, packed.content)
    if packing.every == 1:
        return _TAIL.pack(*before, *after, _MAGIC)
    return _TAIL_2.pack(*before, packing.every, *after, _MAGIC_2)


def _parse_tail(end: bytes) -> PackInfo | None:
    """The tail at the end of some bytes, at least as many as the longer one has."""
    every = 1
    if len(end) >= _TAIL.size and end.endswith(_MAGIC):
        n, height, width, short_px, quality, nbytes, mtime_ns, content, _ = _TAIL.unpack(end[-_TAIL.size :])
    elif len(end) >= _TAIL_2.size and end.endswith(_MAGIC_2):
        fields = _TAIL_2.unpack(end[-_TAIL_2.size :])
        n, height, width, short_px, quality, every, nbytes, mtime_ns, content, _ = fields
    else:
        return None
    packing = Packing(short_px, quality, every)
    return PackInfo(n, height, width, packing, Stamp(nbytes, mtime_ns), content)
