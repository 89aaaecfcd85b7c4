"""Every kind of JPEG and PNG that a user may have becomes the right 8-bit RGB, in Pillow and in DALI."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.data.datasets.decode import inspect, to_pixels, to_png
from sskt.errors import UnreadableError


def _photo(seed=0, height=40, width=56):
    """Smooth colour ramps with a little noise: uint8 (H, W, 3)."""
    y, x = np.mgrid[0:height, 0:width]
    ramps = np.stack([x * 4, y * 6, (x + y) * 2], axis=2)
    return (ramps + np.random.default_rng(seed).integers(0, 9, ramps.shape)).clip(0, 255).astype(np.uint8)


def _saved(image, format_, **options):
    out = io.BytesIO()
    image.save(out, format=format_, **options)
    return out.getvalue()


def _png(values, bit_depth, colour_type, extra=b""):
    """A PNG written by hand from the specification; `values` are big-endian rows of bytes (H, row bytes)."""
    height, width = (
        values.shape[0],
        values.shape[1] * 8 // (bit_depth * {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]),
    )

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def _deep(channels):
    """16-bit values whose high byte is known: uint16 big-endian (H, W * channels), and that high byte."""
    high = np.random.default_rng(1).integers(0, 256, (24, 20 * channels)).astype(np.uint16)
    low = np.random.default_rng(2).integers(0, 256, high.shape).astype(np.uint16)
    return ((high << 8) | low).astype(">u2").view(np.uint8), high.astype(np.uint8).reshape(24, 20, channels)


RGB = _photo()
GREY = RGB[..., 0]
ALPHA = np.dstack([RGB, RGB[..., 2]])
DEEP_GREY, DEEP_GREY_HIGH = _deep(1)
DEEP_RGB, DEEP_RGB_HIGH = _deep(3)
PALETTE = Image.fromarray(RGB).quantize(16)
BITS = np.random.default_rng(3).integers(0, 256, (8, 2)).astype(np.uint8)

EXACT = {  # encoded bytes, expected pixels, does it need transcoding
    "png": (_saved(Image.fromarray(RGB), "PNG"), RGB, False),
    "grey png": (_saved(Image.fromarray(GREY), "PNG"), np.dstack([GREY] * 3), False),
    "alpha png": (_saved(Image.fromarray(ALPHA), "PNG"), RGB, True),
    "grey alpha png": (_saved(Image.fromarray(ALPHA[..., [0, 3]]), "PNG"), np.dstack([GREY] * 3), True),
    "palette png": (
        _saved(PALETTE, "PNG"),
        np.array(PALETTE.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)[np.asarray(PALETTE)],
        True,
    ),
    "transparent palette png": (
        _saved(PALETTE, "PNG", transparency=bytes(range(0, 160, 10))),
        np.array(PALETTE.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)[np.asarray(PALETTE)],
        True,
    ),
    "16-bit grey png": (_png(DEEP_GREY, 16, 0), np.repeat(DEEP_GREY_HIGH, 3, axis=2), True),
    "16-bit rgb png": (_png(DEEP_RGB, 16, 2), DEEP_RGB_HIGH, True),
    "1-bit png": (_png(BITS, 1, 0), np.repeat(np.unpackbits(BITS, axis=1)[..., None] * 255, 3, axis=2), True),
}


@pytest.mark.parametrize("kind", EXACT)
def test_png_kinds_give_exactly_their_pixels(kind):
    encoded, expected, transcode = EXACT[kind]
    seen = inspect(encoded)
    assert (seen.height, seen.width) == expected.shape[:2]
    assert seen.transcode == transcode
    pixels = to_pixels(encoded)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    np.testing.assert_array_equal(pixels, expected)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(to_png(pixels)))), expected)


def _cmyk():
    return _saved(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=95)


def _slightly_damaged():
    """What Pillow forgives and DALI alone would stop at: a stray byte between segments, a wrong last CRC."""
    jpeg = _saved(Image.fromarray(RGB), "JPEG", quality=95)
    return [jpeg[:20] + b"\0" + jpeg[20:], EXACT["png"][0][:-1] + b"\0"]


def _stored_as_rgb():
    return _saved(Image.fromarray(RGB), "JPEG", quality=95, keep_rgb=True)


@pytest.mark.parametrize(
    ("encoded", "transcode"),
    [
        (_saved(Image.fromarray(RGB), "JPEG", quality=95), False),
        (_saved(Image.fromarray(RGB), "JPEG", quality=95, progressive=True, subsampling=0), False),
        (_cmyk(), True),
        (_stored_as_rgb(), True),
        *((file, True) for file in _slightly_damaged()),
    ],
    ids=["baseline", "progressive", "cmyk", "stored as rgb", "stray byte", "wrong crc"],
)
def test_unusual_files_give_the_colours_they_were_made_from(encoded, transcode):
    assert inspect(encoded).transcode == transcode
    error = np.abs(to_pixels(encoded).astype(int) - RGB)
    assert (
        error.mean() < 4
    )  # what quality 95 and 4:2:0 cost on this noise; a channel swap or inversion costs > 30


def test_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = _saved(Image.fromarray(RGB), "JPEG", exif=exif)
    assert to_pixels(encoded).shape == RGB.shape
    assert (inspect(encoded).height, inspect(encoded).width) == RGB.shape[:2]


def test_dali_reads_what_is_handed_to_it_as_pillow_does():
    dali = pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    files = [encoded for encoded, _, _ in EXACT.values()] + _slightly_damaged()
    files += [
        _cmyk(),
        _stored_as_rgb(),
        _saved(Image.fromarray(GREY), "JPEG"),
        _saved(Image.fromarray(RGB), "JPEG"),
    ]
    handed_on = [to_png(to_pixels(f)) if inspect(f).transcode else f for f in files]
    pipe = dali.Pipeline(len(files), 1, None)
    with pipe:
        source = dali.fn.external_source(
            source=lambda: [np.frombuffer(f, dtype=np.uint8) for f in handed_on],
            dtype=dali.types.UINT8,
            ndim=1,
        )
        pipe.set_outputs(
            dali.fn.decoders.image(source, output_type=dali.types.RGB, jpeg_fancy_upsampling=True)
        )
    pipe.build()
    (output,) = pipe.run()
    for row, file in enumerate(files):
        error = np.abs(np.array(output[row]).astype(int) - to_pixels(file))
        assert error.max() <= (0 if file.startswith(b"\x89PNG") else 2), row


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (b"", "zero bytes"),
        (b"this is a text file\n", "no image inside that can be read"),
        (b"<!doctype html><title>gone</title>", "a web page inside"),
        (_saved(Image.fromarray(RGB), "JPEG")[:-100], "truncated"),
        (_saved(Image.fromarray(RGB), "PNG")[:-400], "truncated"),
    ],
    ids=["empty", "text", "web page", "truncated jpeg", "truncated png"],
)
def test_damage_is_named(encoded, reason):
    with pytest.raises(UnreadableError, match=reason):
        inspect(encoded)


def test_huge_picture_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnreadableError, match="over 2,000 pixels"):
        inspect(_saved(Image.fromarray(RGB), "PNG"))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about metadata; the listing switches them off
@pytest.mark.parametrize("format_", ["JPEG", "PNG"])
def test_flipped_bytes_never_raise_anything_else(format_):
    sound = _saved(Image.fromarray(ALPHA if format_ == "PNG" else RGB), format_)
    random = np.random.default_rng(7)
    reasons = []
    for _ in range(300):
        damaged = bytearray(sound)
        for place in random.integers(0, len(sound), random.integers(1, 6)):
            damaged[place] = random.integers(0, 256)
        del damaged[random.integers(len(sound) // 2, 2 * len(sound)) :]
        try:
            inspect(bytes(damaged))
        except UnreadableError as error:
            reasons.append(str(error))
    assert 30 < len(reasons) < 300
    assert not any("\n" in reason for reason in reasons)
