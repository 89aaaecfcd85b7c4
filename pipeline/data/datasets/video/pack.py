"""A packed video: equal-sized JPEG frames, concatenated, with an offset table.

Layout, little endian: the frames; n + 1 offsets (u64), where each begins and the last ends; and at the very
end `_TAIL`. A pack is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cache import write_durably
from pipeline.data.datasets.video.decode import decode_frames, frame_files
from sskt.errors import TargetError

SUFFIX = ".frames"  # follows the video's own name

_MAGIC = b"SSKTvid1"
# n, height, width, short_px, quality, bytes and mtime_ns of the video, content, magic
_TAIL = struct.Struct("<IIIIIQq16s8s")


@dataclass(frozen=True, slots=True)
class Packing:
    """How frames are packed: resized to a short side of `short_px` if it is longer, as JPEG of a quality from
    1 to 100.
    """

    short_px: int = 128
    quality: int = 90

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


def write_pack(source: Path, path: Path, packing: Packing) -> PackInfo:
    """Decode a video and pack its frames at `path`.

    Raises `pipeline.data.datasets.decode.UnreadableError` if any frame cannot be decoded, OSError if the pack
    cannot be written; nothing is left behind then.
    """
    stamp = Stamp.of(source)
    frames: list[bytes] = []
    size: tuple[int, int] | None = None
    for image in decode_frames(source):
        frame, size = packing.frame(image, size)  # all of the first one's size
        frames.append(frame)
    assert size is not None  # noqa: S101 - a video without frames is unreadable
    offsets = np.cumsum([0, *map(len, frames)], dtype="<u8").tobytes()
    digest = hashlib.sha256(offsets)
    for frame in frames:
        digest.update(frame)
    width, height = size
    packed = PackInfo(len(frames), height, width, packing, stamp, digest.digest()[:16])
    tail = _TAIL.pack(
        len(frames),
        height,
        width,
        packing.short_px,
        packing.quality,
        stamp.nbytes,
        stamp.mtime_ns,
        packed.content,
        _MAGIC,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, *frames, offsets, tail)
    return packed


def read_pack(path: Path) -> PackInfo | None:
    """Read the description of the pack at `path`; None if there is no complete pack."""
    try:
        with path.open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - _TAIL.size))
            info = _parse_tail(file.read())
            if info is None or length < _TAIL.size + 8 * (info.n_frames + 1):
                return None
            file.seek(length - _TAIL.size - 8)
            end = int.from_bytes(file.read(8), "little")
    except OSError:
        return None
    return info if end + 8 * (info.n_frames + 1) + _TAIL.size == length else None


def is_sound(path: Path, packed: PackInfo) -> bool:
    """Whether every byte of a pack is as written."""
    data = path.read_bytes()
    frames_end = len(data) - _TAIL.size - 8 * (packed.n_frames + 1)
    digest = hashlib.sha256(data[frames_end : len(data) - _TAIL.size])
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
        if _parse_tail(self._data[-_TAIL.size :]) != packed:
            raise TargetError(f"{path}: is another pack than the one that was indexed; start again")
        table = len(self._data) - _TAIL.size - 8 * (packed.n_frames + 1)
        self._offsets: NDArray[np.uint64] = np.frombuffer(
            self._data, dtype="<u8", count=packed.n_frames + 1, offset=table
        )

    def frame(self, number: int) -> bytes:
        """One frame's JPEG file."""
        start, end = (int(v) for v in self._offsets[number : number + 2])
        return self._data[start:end]


def _parse_tail(tail: bytes) -> PackInfo | None:
    if len(tail) != _TAIL.size or not tail.endswith(_MAGIC):
        return None
    n, height, width, short_px, quality, nbytes, mtime_ns, content, _ = _TAIL.unpack(tail)
    return PackInfo(n, height, width, Packing(short_px, quality), Stamp(nbytes, mtime_ns), content)
