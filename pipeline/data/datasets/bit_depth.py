"""16-bit images: how many of their bits are used, and their values.

Cameras and microscopes write 10 or 12 bits into 16-bit files, whose high byte alone would leave 4 or 16 grey
levels. So a dataset's 16-bit files are read as values of 8, 10, 12, 14 or 16 bits: the fewest that hold all
of them, the same for every file. Scaling each file by its own maximum would make equal values unequal.
"""

from __future__ import annotations

import io
import re
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FULL = 16  # bits, of which a pixel is the high byte
_DEPTHS = (8, 10, 12, 14, FULL)
_GREY_ALPHA = 4  # PNG's colour type
_PNG_HEADER_END = 33  # where the signature and IHDR end
_PGM_HEADER = 200  # bytes within which it ends, comments included
_BITS_PER_SAMPLE, _MAX_SAMPLE_VALUE = 258, 281  # TIFF tags


def depth_of(bits: int) -> int:
    """The depth that values of up to `bits` bits are read at."""
    return next(depth for depth in _DEPTHS if depth >= min(bits, FULL))


def is_deep(image: Image.Image, encoded: bytes) -> bool:
    """Whether more than 8 bits per channel can be read from a file. Raises ValueError for values without a
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
    """How many bits a deep file's values use, at least 1 and at least what the file declares (PNG's sBIT,
    TIFF's MaxSampleValue and BitsPerSample). Raises ValueError for values beyond 16 bits.
    """
    values = deep_values(image, encoded)
    return FULL if values is None else max(1, int(values.max()).bit_length(), _declared_bits(image, encoded))


def deep_values(image: Image.Image, encoded: bytes) -> NDArray[np.uint16] | None:
    """The values of a deep file, uint16 (H, W, 3); None if only their high bytes can be read.

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
    deep = _decode_by_ffmpeg(encoded)
    high = np.array(image.convert("RGB"))  # Pillow keeps the high byte of 16-bit colours
    if deep is None or deep.shape != high.shape or bool((deep >> 8 != high).any()):
        return None
    return deep


def to_8_bits(values: NDArray[np.uint16], depth: int) -> NDArray[np.uint8]:
    """The high 8 of `depth` bits."""
    return np.ascontiguousarray((values >> (depth - 8)).astype(np.uint8))


def _grey_with_alpha(encoded: bytes) -> NDArray[np.uint16]:
    """Read a 16-bit PNG of grey and alpha: its four bytes per pixel, as those of an 8-bit RGBA PNG."""
    header = encoded[12:24] + bytes((8, 6)) + encoded[26 : _PNG_HEADER_END - 4]
    as_rgba = encoded[:12] + header + struct.pack(">I", zlib.crc32(header)) + encoded[_PNG_HEADER_END:]
    with Image.open(io.BytesIO(as_rgba), formats=("PNG",)) as image:
        pairs = np.asarray(image).astype(np.uint16)
    return np.repeat((pairs[..., :1] << 8) | pairs[..., 1:2], 3, axis=2)


def _decode_by_ffmpeg(encoded: bytes) -> NDArray[np.uint16] | None:
    """Decode 16-bit colours, which Pillow cannot: uint16 (H, W, 3); None if FFmpeg cannot either."""
    import av

    kind = "png_pipe" if encoded.startswith(b"\x89PNG") else "tiff_pipe"
    try:
        with av.open(io.BytesIO(encoded), "r", format=kind) as container:
            frame = next(container.decode(video=0))
            values = frame.to_ndarray()
    except (av.error.FFmpegError, OSError, ValueError, StopIteration):
        return None
    return values[..., :3].astype(np.uint16) if values.ndim == 3 and values.dtype.itemsize == 2 else None


def _declared_bits(image: Image.Image, encoded: bytes) -> int:
    """How many bits count, as the file declares; 0 if it declares nothing, or all of them."""
    declared = 0
    if image.format == "PNG":
        declared = max(_significant_bits(encoded), default=0)
    elif image.format == "TIFF":
        highest = getattr(image, "tag_v2", {}).get(_MAX_SAMPLE_VALUE, 0)
        highest = max(highest) if isinstance(highest, tuple) else highest
        declared = int(highest).bit_length() or max(_bits_per_sample(image), default=0)
    elif image.format == "PPM":
        header = re.sub(rb"#[^\n]*", b"", encoded[:_PGM_HEADER]).split()
        return FULL if len(header) > 3 and header[3] != b"65535" else 0  # Pillow has scaled it to 16 bits
    return declared if declared < FULL else 0


def _bits_per_sample(image: Image.Image) -> tuple[int, ...]:
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, ())
    return bits if isinstance(bits, tuple) else (int(bits),)


def _significant_bits(encoded: bytes) -> bytes:
    """A PNG's chunk sBIT, one byte per channel."""
    at = _PNG_HEADER_END
    while at + 12 <= len(encoded):
        length, kind = struct.unpack_from(">I4s", encoded, at)
        if kind == b"IDAT":
            break
        if kind == b"sBIT":
            return encoded[at + 8 : at + 8 + length]
        at += 12 + length
    return b""
