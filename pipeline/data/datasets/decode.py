"""One image file: whether it is sound, and its pixels as 8-bit RGB, by Pillow.

The rules, which hold for every renderer: the content decides the format, not the suffix; EXIF orientation is
ignored (as torchvision's ImageFolder does without transforms; TIFF's own is not); alpha is dropped, not
composited (as there); grey becomes three equal channels; 16-bit values are cut to the high 8 of the bits in
use (`bit_depth`); of several images in one file the first is read.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.data.datasets.bit_depth import FULL, bits_used, deep_values, depth_of, is_deep, to_8_bits
from sskt.errors import UnreadableError

# what is read, in the order of the numbers in `checked_files.FACTS`; JPEG includes MPO
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "AVIF": (".avif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpx", ".jpf"),
    "QOI": (".qoi",),
}
SUFFIXES = {suffix: kind for kind, suffixes in FORMATS.items() for suffix in suffixes}

_FOREIGN = (  # what else image suffixes are put on: offset of the signature, signature, what it is
    (4, b"ftyphei", "an HEIC image"),
    (4, b"ftypmif1", "an HEIC image"),
    (0, b"version https://git-lfs", "a Git LFS pointer; fetch the file itself with `git lfs pull`"),
    (0, b"<!DOCTYPE html", "a web page"),
    (0, b"<html", "a web page"),
    (0, b"<svg", "an SVG drawing"),
    (0, b"<?xml", "XML"),
    (0, b"%PDF", "a PDF"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"PK\x03\x04", "a zip archive"),
    (4, b"ftyp", "a video"),
)
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    OverflowError,
    IndexError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is known of a sound image: its size, its content (see `content_of`), and how to decode it.

    transcode: decoders disagree about this kind of file (CMYK, palette, alpha, 16-bit, ...), so Pillow
    decodes it for all. kind: one of `FORMATS`. bits: how many a 16-bit file's values use, 0 for other files.
    several: whether the file has more images (frames of an animation, pages), which are not read.
    """

    height: int
    width: int
    content: bytes
    transcode: bool
    kind: str
    bits: int
    several: bool


def inspect(encoded: bytes) -> Inspection:
    """Decode a file's bytes in full. Raises UnreadableError with the reason if that fails."""
    if not encoded:
        raise UnreadableError("zero bytes")
    try:
        with _open(encoded) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or float("inf")):
                raise UnreadableError(
                    f"{image.width} x {image.height} is over {Image.MAX_IMAGE_PIXELS:,} pixels"
                )
            image.load()
            transcode = not _any_decoder_agrees(image, encoded)
            bits = bits_used(image, encoded) if is_deep(image, encoded) else 0
            if transcode and not bits:
                _to_rgb(image)
            return Inspection(
                image.height,
                image.width,
                content_of(encoded),
                transcode,
                "JPEG" if image.format == "MPO" else str(image.format),
                bits,
                _has_several(image),
            )
    except UnidentifiedImageError:
        raise UnreadableError(_what_is_inside(encoded)) from None
    except Image.DecompressionBombError:
        raise UnreadableError(f"over {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels") from None
    except _BROKEN as error:
        raise UnreadableError(str(error).splitlines()[0] if str(error) else type(error).__name__) from None


def content_of(data: bytes | memoryview) -> bytes:
    """A sample's content in dataset and store: 16 bytes of the sha256 of file bytes or raw pixels."""
    return hashlib.sha256(data).digest()[:16]


def to_pixels(encoded: bytes, depth: int | None = FULL) -> NDArray[np.uint8]:
    """Decode to uint8 (H, W, 3), RGB, by the rules above; a 16-bit file's values have `depth` bits, None for
    as many as the file alone tells.
    """
    if depth is None:
        depth = depth_of(inspect(encoded).bits or FULL)
    with _open(encoded) as image:
        image.load()
        if image.mode.startswith("I") or (depth != FULL and is_deep(image, encoded)):
            values = deep_values(image, encoded)
            if values is not None:
                return to_8_bits(values, depth)
        return _to_rgb(image)


def to_png(pixels: NDArray[np.uint8]) -> bytes:
    """An 8-bit RGB PNG of uint8 (H, W, 3), which every decoder reads to the same pixels."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG", compress_level=1)
    return out.getvalue()


def _open(encoded: bytes) -> Image.Image:
    return Image.open(io.BytesIO(encoded), formats=tuple(FORMATS))


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if "transparency" in image.info or image.mode in ("PA", "La", "RGBa"):
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def _has_several(image: Image.Image) -> bool:
    """Whether a file holds more images than the first; a camera's previews do not count."""
    with suppress(*_BROKEN):
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    return False


def _what_is_inside(encoded: bytes) -> str:
    """Why a file is not an image, from its first bytes."""
    start = encoded.removeprefix(b"\xef\xbb\xbf").lstrip()[:64]
    for at, mark, what in _FOREIGN:
        if start[at:].lower().startswith(mark.lower()):
            return f"{what} inside"
    return "no image inside that can be read"


def _any_decoder_agrees(image: Image.Image, encoded: bytes) -> bool:
    """Whether libjpeg, nvJPEG, libpng and Pillow all read this file to the same pixels."""
    if image.format == "JPEG":
        stored_as_rgb = image.mode == "RGB" and image.info.get("adobe_transform") == 0
        return image.mode in ("L", "RGB") and not stored_as_rgb and _clean_jpeg(encoded)
    if image.format != "PNG" or not _clean_png(encoded):
        return False
    bit_depth, colour_type = encoded[24], encoded[25]  # of IHDR; the mode does not tell 16-bit RGB from 8-bit
    single = not getattr(image, "is_animated", False)
    return bit_depth == 8 and colour_type in (0, 2) and "transparency" not in image.info and single


def _clean_jpeg(encoded: bytes) -> bool:
    """Whether the segments up to the scan are contiguous; Pillow skips stray bytes, DALI stops at them."""
    at = 2
    while at + 4 <= len(encoded):
        marker = encoded[at + 1]
        known = (0xC0 <= marker <= 0xEF and not 0xD0 <= marker <= 0xD9) or marker == 0xFE
        if encoded[at] != 0xFF or not known:
            return False
        if marker == 0xDA:
            return True
        at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return False


def _clean_png(encoded: bytes) -> bool:
    """Whether every chunk up to IEND is complete with the right CRC; Pillow forgives some, DALI none."""
    at = len(_PNG_SIGNATURE)
    while at + 12 <= len(encoded):
        length, kind = struct.unpack_from(">I4s", encoded, at)
        end = at + 8 + length
        if int.from_bytes(encoded[end : end + 4], "big") != zlib.crc32(encoded[at + 4 : end]):
            return False
        if kind == b"IEND":
            return True
        at = end + 4
    return False
