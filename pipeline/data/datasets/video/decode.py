"""Decode the frames of one video in display order, from a file that FFmpeg reads (PyAV) or a folder of
images.

A file is usable if all of it can be decoded: frames that FFmpeg conceals are not what anybody labelled.
Frames are rotated as the file says (phones film upright that way). Pixel aspect is ignored, as by the scripts
that UCF101's and HMDB51's frames are usually extracted with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from pipeline.data.datasets.bit_depth import FULL, depth_of
from pipeline.data.datasets.decode import inspect, to_pixels
from pipeline.data.datasets.video.sequence import FRAME_SUFFIXES, find_sequence
from sskt.errors import UnreadableError, shown

if TYPE_CHECKING:
    import av

# fmt: off
VIDEO_SUFFIXES = (
    ".avi", ".mp4", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".mts",
    ".m2ts", ".3gp", ".3g2", ".ogv", ".ogm", ".asf", ".vob", ".f4v", ".mpe", ".m1v", ".m2v", ".qt",
    ".divx", ".rm", ".rmvb", ".mjpg", ".mjpeg", ".dv", ".mxf", ".y4m", ".ivf", ".nut", ".gif",
)
# fmt: on

_PICTURES = (
    "apng",
    "ico",
    "image2",
    "webp",
    "avif",
)  # FFmpeg's image formats that do not end with _pipe
_GIF, _GIF_END = "gif", b";"
_SQUEEZE = 0.02  # by how much the aspect ratios of frames may differ: rounding
_LOST_SHARE = 50  # one in so many frames may be missing from what the header promises; HMDB51 lacks the last
_LOST_FRAMES = 5  # and the file may end this many frames before the time that it promises


def decode_frames(source: Path) -> Iterator[Image.Image]:
    """Yield every frame as an RGB image. Raises UnreadableError, with the reason, if any cannot be decoded or
    has another shape than the first.
    """
    first: tuple[int, int] | None = None
    for n, frame in enumerate(_decode_folder(source) if source.is_dir() else _decode_file(source)):
        first = first or frame.size
        if abs(frame.width * first[1] / (frame.height * first[0]) - 1) > _SQUEEZE:
            raise UnreadableError(
                f"frame {n} is {frame.width} x {frame.height}, those before are {first[0]} x {first[1]}"
            )
        yield frame


def frame_files(folder: Path) -> list[Path]:
    """The files whose change changes a folder's video: its frames, or all images if those are ambiguous."""
    try:
        return list(find_sequence(folder).frames)
    except UnreadableError:
        return sorted(path for path in folder.iterdir() if path.suffix.lower() in FRAME_SUFFIXES)


def _decode_folder(folder: Path) -> Iterator[Image.Image]:
    files = find_sequence(folder).frames
    depth = _depth(files)
    for path in files:
        try:
            yield Image.fromarray(to_pixels(path.read_bytes(), depth))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UnreadableError(f"{shown(path.name)}: {_reason(error)}") from None


def _depth(files: Sequence[Path]) -> int:
    """The depth of a sequence's 16-bit frames; a sequence is from one camera, so the first tells if there are
    any.
    """
    try:
        if not inspect(files[0].read_bytes()).bits:
            return FULL
        return depth_of(max(inspect(path.read_bytes()).bits for path in files))
    except (OSError, UnreadableError):  # which reading the frames will report
        return FULL


def _decode_file(path: Path) -> Iterator[Image.Image]:
    import av  # here, since images need none of FFmpeg's libraries

    try:
        with ExitStack() as opened:
            source: Any = str(path)
            if shown(source) != source:  # FFmpeg takes names in UTF-8 only
                source = opened.enter_context(path.open("rb"))
            container = opened.enter_context(av.open(source, metadata_errors="ignore"))
            if container.format.name == _GIF:
                _require_end(path)
            yield from _decode_container(container)
    except (av.error.FFmpegError, OSError, ValueError) as error:  # PyAV raises the last for some headers
        raise UnreadableError(_reason(error)) from None


def _require_end(gif: Path) -> None:
    """Raise UnreadableError unless a GIF ends as one: FFmpeg does not report that the rest is missing."""
    if not gif.read_bytes().rstrip(b"\0").endswith(_GIF_END):
        raise UnreadableError("cut off")


def _decode_container(container: av.container.InputContainer) -> Iterator[Image.Image]:
    kind = container.format.name
    if kind.endswith("_pipe") or kind in _PICTURES:
        raise UnreadableError(f"a picture ({kind.removesuffix('_pipe')}), not a video")
    if not container.streams.video:
        raise UnreadableError("no video in it" + (", only audio" if container.streams.audio else ""))
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise UnreadableError("no decoder for its video")
    stream.codec_context.thread_count = 1  # videos are decoded in parallel
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
            yield _rotate(frame)
    if n == 0:
        raise UnreadableError("no frame in it")
    if n == 1 and kind == _GIF:
        raise UnreadableError("a picture (gif), not a video")
    _require_whole(container, stream, n, end_s)


def _rotate(frame: av.VideoFrame) -> Image.Image:
    """A frame as it is displayed, rotated by the quarter turns that the file says."""
    image = Image.fromarray(frame.to_ndarray(format="rgb24"))
    turn = 90 * round(frame.rotation / 90)  # counter-clockwise
    return image.rotate(turn, expand=True) if turn else image


def _require_whole(
    container: av.container.InputContainer, stream: av.VideoStream, n: int, end_s: float
) -> None:
    """Raise UnreadableError if fewer than the promised frames came, or none are promised and the last packet
    of any stream ends at `end_s`, before the promised time.

    MP4 and MOV promise all frames, and a cut without re-encoding hides some by an edit list: there both must
    fall short. Matroska counts no frames, so only its time tells. AVI counts frames, and its time is FFmpeg's
    guess from what is left.
    """
    import av

    promised, kinds = stream.frames, container.format.name.split(",")
    promised_s = (container.duration or 0) / av.time_base
    lost_s = max(_LOST_FRAMES / float(stream.guessed_rate or 25), promised_s / _LOST_SHARE)
    early = end_s < promised_s - lost_s
    if promised - n > max(1, promised // _LOST_SHARE) and (early or "mp4" not in kinds):
        raise UnreadableError(f"cut off, {n} of its {promised} frames are there")
    if early and "matroska" in kinds:
        raise UnreadableError(f"cut off, {end_s:.2f} of its {promised_s:.2f} seconds are there")


def _reason(error: Exception) -> str:
    """An error's reason, without number and path, which the caller names."""
    text = (getattr(error, "strerror", None) or str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__
