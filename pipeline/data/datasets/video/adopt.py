"""Prepare a folder of videos without decoding, if it was prepared in another place or under another name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pipeline.data.datasets.video.pack import Packing, Stamp
from pipeline.data.datasets.video.pack_record import (
    KnownVideos,
    Record,
    bytes_sha256,
    pack_path,
    write_record,
)
from pipeline.data.datasets.video.spec import VideoEntry, VideoSpec
from sskt.errors import UnreadableError

Found = list[tuple[VideoEntry, str, Stamp]]  # a video, its sha256, its length and time


def adopt(spec: VideoSpec, data_dir: Path, index_dir: Path) -> Record | None:
    """Link the packs of a folder whose videos were all packed elsewhere, in one way, and return its record.

    None, with nothing done, if any was not.
    """
    if not spec.is_own_folder:
        return None
    packings = set(_packings(spec, index_dir))
    known = KnownVideos(spec, data_dir, index_dir)
    videos = _all_known(spec, data_dir, known) if packings else None
    if videos is None:
        return None
    for packing in sorted(packings, key=repr):
        try:
            if all(
                known.take(sha256, clip.name, pack_path(spec, data_dir, index_dir, clip.name), packing, stamp)
                for clip, sha256, stamp in videos
            ):
                known.settle()
                known.save()
                record = Record(packing)
                write_record(spec, data_dir, index_dir, record)
                return record
            known.give_up()
        except OSError:  # it cannot be written, which preparing will report
            return None
    return None


def _packings(spec: VideoSpec, index_dir: Path) -> Iterator[Packing]:
    """The packings of folders of videos that were prepared without a loss."""
    for file in index_dir.glob(f"{spec.family}-*/prepared-1.json"):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            if not record["missing"] and not record["damaged"]:
                yield Packing.recorded(record["packing"])
        except (OSError, ValueError, KeyError, TypeError):
            continue


def _all_known(spec: VideoSpec, data_dir: Path, known: KnownVideos) -> Found | None:
    """Every video of a folder, if all are known; lengths are compared before any is read."""
    clips = [clip for split in spec.list_videos(data_dir).clips.values() for clip in split]
    videos = []
    try:
        stamped = [(clip, clip.source, Stamp.of(clip.source)) for clip in clips if clip.source is not None]
        if len(stamped) < len(clips) or not {stamp.nbytes for *_, stamp in stamped} <= known.lengths:
            return None
        for clip, source, stamp in stamped:
            sha256 = bytes_sha256(source)
            if not known.has_pack(sha256):
                return None
            videos.append((clip, sha256, stamp))
    except (OSError, UnreadableError):
        return None
    return videos
