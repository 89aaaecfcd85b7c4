"""The frames of one video, in the order they are shown: of a file that FFmpeg reads (PyAV), or of a folder of
pictures.

A file is usable if all of it can be decoded: frames that FFmpeg had to make up are not what anybody labelled.
Rotation and pixel-aspect notes in a file are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
from PIL import Image

from pipeline.targets.decode import UnreadableError, to_pixels

VIDEO_SUFFIXES = (".avi", ".mp4", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv")
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")

_LOST_SHARE = 50  # one in so many frames may be missing from what the header promises; HMDB51 lacks the last


def frames_of(source: Path) -> Iterator[Image.Image]:
    """Every frame as an RGB picture. Raises UnreadableError, with the reason, if any cannot be had."""
    return _of_folder(source) if source.is_dir() else _of_file(source)


def frame_files(folder: Path) -> list[Path]:
    """The pictures directly in a folder, by name; files that start with a dot are none."""
    return sorted(
        p for p in folder.iterdir() if p.suffix.lower() in FRAME_SUFFIXES and not p.name.startswith(".")
    )


def _of_folder(folder: Path) -> Iterator[Image.Image]:
    files = frame_files(folder)
    if not files:
        raise UnreadableError("a folder without .jpg, .jpeg or .png files")
    for path in files:
        try:
            yield Image.fromarray(to_pixels(path.read_bytes()))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UnreadableError(f"{path.name}: {_first_line(error)}") from None


def _of_file(path: Path) -> Iterator[Image.Image]:
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            yield from _decoded(container)
    except (av.error.FFmpegError, OSError, ValueError) as error:  # PyAV raises the last for some headers
        raise UnreadableError(_first_line(error)) from None


def _decoded(container: av.container.InputContainer) -> Iterator[Image.Image]:
    if not container.streams.video:
        raise UnreadableError("no video in it" + (", only audio" if container.streams.audio else ""))
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1  # videos are decoded side by side
    n, promised = 0, stream.frames
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise UnreadableError(f"damaged or cut off after frame {n}")
        for frame in packet.decode():
            if frame.is_corrupt:
                raise UnreadableError(f"frame {n} is damaged")
            n += 1
            yield Image.fromarray(frame.to_ndarray(format="rgb24"))
    if n == 0:
        raise UnreadableError("no frame in it")
    if promised - n > max(1, promised // _LOST_SHARE):
        raise UnreadableError(f"cut off, {n} of its {promised} frames are there")


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
