"""The frames of one video, in the order they are shown: of a file that FFmpeg reads (PyAV), or of a folder of
pictures.

A file is usable if all of it can be decoded: frames that FFmpeg had to make up are not what anybody labelled.
Frames are turned as the file says (phones film upright that way). Its pixel aspect is ignored, as by the
scripts that everybody extracts UCF101's and HMDB51's frames with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import av
from PIL import Image

from pipeline.targets.decode import UnreadableError, to_pixels

VIDEO_SUFFIXES = (".avi", ".mp4", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv")
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")

_PICTURES = ("gif", "apng", "ico", "image2")  # FFmpeg's names of pictures that do not end with _pipe
_LOST_SHARE = 50  # one in so many frames may be missing from what the header promises; HMDB51 lacks the last
_LOST_FRAMES = 5  # and the file may end so many frames before the time that it promises


def frames_of(source: Path) -> Iterator[Image.Image]:
    """Every frame as an RGB picture. Raises UnreadableError, with the reason, if any cannot be had."""
    return _of_folder(source) if source.is_dir() else _of_file(source)


def frame_files(folder: Path) -> list[Path]:
    """The pictures directly in a folder, by the numbers in their names (frame2 before frame10); files that
    start with a dot are none.
    """
    files = (p for p in folder.iterdir() if p.suffix.lower() in FRAME_SUFFIXES and not p.name.startswith("."))
    return sorted(files, key=lambda path: (_counted(path.stem), path.name))


def _of_folder(folder: Path) -> Iterator[Image.Image]:
    files = frame_files(folder)
    if not files:
        raise UnreadableError("a folder without .jpg, .jpeg or .png files")
    for path in files:
        try:
            yield Image.fromarray(to_pixels(path.read_bytes()))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UnreadableError(f"{path.name}: {_reason(error)}") from None


def _of_file(path: Path) -> Iterator[Image.Image]:
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            yield from _decoded(container)
    except (av.error.FFmpegError, OSError, ValueError) as error:  # PyAV raises the last for some headers
        raise UnreadableError(_reason(error)) from None


def _decoded(container: av.container.InputContainer) -> Iterator[Image.Image]:
    kind = container.format.name
    if kind.endswith("_pipe") or kind in _PICTURES:
        raise UnreadableError(f"a picture ({kind.removesuffix('_pipe')}), not a video")
    if not container.streams.video:
        raise UnreadableError("no video in it" + (", only audio" if container.streams.audio else ""))
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise UnreadableError("no decoder for its video")
    stream.codec_context.thread_count = 1  # videos are decoded side by side
    n, end_s = 0, 0.0
    for packet in container.demux():
        if packet.pts is not None:
            end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream is not stream:
            continue
        if packet.is_corrupt:
            raise UnreadableError(f"damaged or cut off after frame {n}")
        for frame in stream.decode(packet):
            if frame.is_corrupt:
                raise UnreadableError(f"frame {n} is damaged")
            n += 1
            yield _upright(frame)
    if n == 0:
        raise UnreadableError("no frame in it")
    _require_whole(container, stream, n, end_s)


def _upright(frame: av.VideoFrame) -> Image.Image:
    """A frame as it is shown, turned by the quarters that the file says."""
    picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
    turn = 90 * round(frame.rotation / 90)  # counter-clockwise
    return picture.rotate(turn, expand=True) if turn else picture


def _require_whole(
    container: av.container.InputContainer, stream: av.VideoStream, n: int, end_s: float
) -> None:
    """Raise UnreadableError if fewer than the promised frames came, or none are promised and the last packet
    of any stream ends at `end_s`, before the promised time.

    MP4 and MOV promise all frames, and a cut without re-encoding hides some by an edit list: there both must
    fall short. The time alone tells of Matroska, which counts no frames. AVI has a count, and its time is
    FFmpeg's guess from what is left.
    """
    promised, kinds = stream.frames, container.format.name.split(",")
    promised_s = (container.duration or 0) / av.time_base
    lost_s = max(_LOST_FRAMES / float(stream.guessed_rate or 25), promised_s / _LOST_SHARE)
    early = end_s < promised_s - lost_s
    if promised - n > max(1, promised // _LOST_SHARE) and (early or "mp4" not in kinds):
        raise UnreadableError(f"cut off, {n} of its {promised} frames are there")
    if early and "matroska" in kinds:
        raise UnreadableError(f"cut off, {end_s:.2f} of its {promised_s:.2f} seconds are there")


def _counted(stem: str) -> list[tuple[str, int]]:
    """A key that sorts runs of digits as numbers."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", stem)]


def _reason(error: Exception) -> str:
    """What is wrong, without number and path, which the caller names."""
    text = (getattr(error, "strerror", None) or str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__
