"""16-bit images: how many of their bits are used, and their values.

Cameras and microscopes write 10 or 12 bits into files of 16; the high byte alone would leave 4 or 16 grey
levels. So a data set's 16-bit files are read as values of 8, 10, 12, 14 or 16 bits, the fewest that hold them
all, the same number for every file: scaling each by its own maximum would change what is bright in which.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FULL = 16  # bits; a pixel is the high byte then
_DEPTHS = (8, 10, 12, 14, FULL)
_GREY_ALPHA = 4  # PNG's colour type
_PNG_HEADER_END = 33  # of the signature and IHDR
_PGM_HEADER = 200  # bytes that hold it, with a comment
_BITS_PER_SAMPLE, _MAX_SAMPLE_VALUE = 258, 281  # TIFF tags


def depth_of(bits: int) -> int:
    """The depth at which values of up to `bits` bits are read."""
    return next(depth for depth in _DEPTHS if depth >= min(bits, FULL))


def is_deep(image: Image.Image, encoded: bytes) -> bool:
    """Whether a file holds more than 8 bits a channel that can be had. Raises ValueError for values without a
    known white.
    """
    if image.mode == "F":
        raise ValueError(
            "its values are floats, whose black and white are not known; save it with 8 or 16 bits"
        )
    if image.mode.startswith("I"):
        return True
    if image.format == "PNG":
        return encoded[24] == FULL  # IHDR's bit depth
    return image.format == "TIFF" and image.mode in ("RGB", "RGBA") and FULL in _bits_per_sample(image)


def bits_used(image: Image.Image, encoded: bytes) -> int:
    """Bits that a deep file's values take, from 1; no fewer than it says of itself (PNG's sBIT, TIFF's
    MaxSampleValue and BitsPerSample). Raises ValueError for values beyond 16 bits.
    """
    values = deep_values(image, encoded)
    return FULL if values is None else max(1, int(values.max()).bit_length(), _declared(image, encoded))


def deep_values(image: Image.Image, encoded: bytes) -> NDArray[np.uint16] | None:
    """The values of a deep file, uint16 (H, W, 3); None if only their high bytes can be had.

    Raises ValueError for values beyond 16 bits.
    """
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() >= 1 << FULL:
            raise ValueError(
                f"its values reach from {values.min()} to {values.max()}, expected 0 to {(1 << FULL) - 1}"
            )
        return np.repeat(values.astype(np.uint16)[..., None], 3, axis=2)
    if image.format == "PNG" and encoded[25] == _GREY_ALPHA:
        return _grey_with_alpha(encoded)
    deep = _by_ffmpeg(encoded)
    high = np.array(image.convert("RGB"))  # of 16-bit colours Pillow has the high byte
    if deep is None or deep.shape != high.shape or bool((deep >> 8 != high).any()):
        return None
    return deep


def to_8_bits(values: NDArray[Any], depth: int) -> NDArray[np.uint8]:
    """The high 8 of `depth` bits."""
    return np.ascontiguousarray((values >> (depth - 8)).astype(np.uint8))


def _grey_with_alpha(encoded: bytes) -> NDArray[np.uint16]:
    """A 16-bit PNG of grey and alpha: its four bytes a pixel, read as those of an 8-bit RGBA PNG."""
    header = encoded[12:24] + bytes((8, 6)) + encoded[26 : _PNG_HEADER_END - 4]
    as_rgba = encoded[:12] + header + struct.pack(">I", zlib.crc32(header)) + encoded[_PNG_HEADER_END:]
    with Image.open(io.BytesIO(as_rgba), formats=("PNG",)) as image:
        pairs = np.asarray(image).astype(np.uint16)
    return np.repeat((pairs[..., :1] << 8) | pairs[..., 1:2], 3, axis=2)


def _by_ffmpeg(encoded: bytes) -> NDArray[np.uint16] | None:
    """16-bit colours, which Pillow cannot give: uint16 (H, W, 3); None if FFmpeg cannot either."""
    import av

    kind = "png_pipe" if encoded.startswith(b"\x89PNG") else "tiff_pipe"
    try:
        with av.open(io.BytesIO(encoded), "r", format=kind) as container:
            frame = next(container.decode(video=0))
            found = frame.to_ndarray()
    except (av.error.FFmpegError, OSError, ValueError, StopIteration):
        return None
    return found[..., :3].astype(np.uint16) if found.ndim == 3 and found.dtype.itemsize == 2 else None


def _declared(image: Image.Image, encoded: bytes) -> int:
    """What the file says of the bits that count; 0 if nothing, or no less than all."""
    said = 0
    if image.format == "PNG":
        said = max(_significant_bits(encoded), default=0)
    elif image.format == "TIFF":
        highest = getattr(image, "tag_v2", {}).get(_MAX_SAMPLE_VALUE, 0)
        highest = max(highest) if isinstance(highest, tuple) else highest
        said = int(highest).bit_length() or max(_bits_per_sample(image), default=0)
    elif image.format == "PPM":
        header = re.sub(rb"#[^\n]*", b"", encoded[:_PGM_HEADER]).split()
        return FULL if len(header) > 3 and header[3] != b"65535" else 0  # Pillow has scaled it to 16 bits
    return said if said < FULL else 0


def _bits_per_sample(image: Image.Image) -> tuple[int, ...]:
    found = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, ())
    return found if isinstance(found, tuple) else (int(found),)


def _significant_bits(encoded: bytes) -> bytes:
    """A PNG's chunk sBIT, one byte a channel."""
    at = _PNG_HEADER_END
    while at + 12 <= len(encoded):
        length, kind = struct.unpack_from(">I4s", encoded, at)
        if kind == b"IDAT":
            break
        if kind == b"sBIT":
            return encoded[at + 8 : at + 8 + length]
        at += 12 + length
    return b""
