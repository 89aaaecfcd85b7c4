"""Pack every video of a target once, in parallel; a stopped preparation is resumed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cache.storage.local import sweep
from pipeline.data.datasets.left_out import write_list
from pipeline.data.datasets.video.decode import VIDEO_SUFFIXES
from pipeline.data.datasets.video.pack import Packing, Stamp, is_sound, read_pack, write_pack
from pipeline.data.datasets.video.pack_record import (
    KnownVideos,
    Record,
    bytes_sha256,
    command_of,
    pack_path,
    write_left_out,
    write_record,
)
from pipeline.data.datasets.video.sequence import find_sequence
from pipeline.data.datasets.video.spec import VideoEntry, VideoListing, VideoSpec
from pipeline.data.datasets.walk import describe_ignored
from pipeline.runtime import Progress
from sskt.errors import TargetError, UnreadableError, few, shown

log = logging.getLogger(__name__)

_KEPT, _NEW, _MISSING = "kept", "new", "missing"  # what became of a video
T = TypeVar("T")


def prepare_videos(
    spec: VideoSpec, data_dir: Path, index_dir: Path, *, packing: Packing, allow_missing: bool
) -> None:
    """Pack what is not packed yet below `index_dir`, and record which listed videos are missing.

    Of `packing` what is None is the target's default. A pack is made again if its video, its bytes or
    `packing` have changed. Raises TargetError, after all others are packed, that names what is missing or
    cannot be decoded, unless `allow_missing`; and TargetError if packs cannot be written.
    """
    packing, listing = packing.settled(spec.every), spec.list_videos(data_dir)
    clips = [clip for split in listing.clips.values() for clip in split]
    remarks = [
        *listing.notes,
        *_note_ignored(spec, data_dir, index_dir, listing),
        *_note_frames(spec, data_dir, index_dir, clips),
    ]
    for note in remarks:
        log.warning(note)
    outcomes = _pack_all(spec, data_dir, index_dir, clips, packing)
    missing = tuple(clip.name for clip in clips if outcomes[clip.name] == _MISSING)
    damaged = {name: what for name, what in outcomes.items() if what not in (_MISSING, _KEPT, _NEW)}
    kept, new = (sum(what == state for what in outcomes.values()) for state in (_KEPT, _NEW))
    log.info(
        f"{spec.name}: {kept + new:,} of {len(clips):,} listed videos are packed ({kept:,} from before), "
        f"short side {packing.short_px} px, JPEG quality {packing.quality}"
        + (f", one of {packing.every} frames" if packing.every != 1 else "")
    )
    record = Record(packing, missing, damaged)
    what = "; ".join(_problems(missing, damaged))
    listed = write_left_out(spec, data_dir, index_dir, record)
    if not kept + new:
        raise TargetError(
            f"{data_dir / spec.root}: no video to train on: {what}, all in {listed}; {spec.how_to_prepare}"
        )
    if what and not allow_missing:
        again = command_of("prepare", spec, data_dir, index_dir, *record.command_words(spec))
        raise TargetError(
            f"{spec.name}: {what}, all in {listed}; the rest is packed. Restore them and prepare again, "
            f"or go on without them: {again}"
        )
    if what:
        log.warning(f"{spec.name}: {what}, all in {listed}; left out, as asked")
    write_record(spec, data_dir, index_dir, record)


def _pack_all(
    spec: VideoSpec, data_dir: Path, index_dir: Path, clips: list[VideoEntry], packing: Packing
) -> dict[str, str]:
    """Pack the videos; returns what became of each: `_KEPT`, `_NEW`, `_MISSING`, or why it cannot be used."""
    paths = {clip.name: pack_path(spec, data_dir, index_dir, clip.name) for clip in clips}
    known = KnownVideos(spec, data_dir, index_dir)
    with Progress(f"packing {spec.name}", total=len(clips)) as progress:
        try:
            # look for all before packing one, which may replace a pack that another video needs
            searched = _each(clips, lambda clip: _find(clip, paths[clip.name], packing, known), paths)
            known.settle()
            outcomes = {name: what for name, what in searched.items() if isinstance(what, str)}
            progress.advance(len(outcomes))
            left = {name: what for name, what in searched.items() if not isinstance(what, str)}
            unpacked = [clip for clip in clips if clip.name in left]

            def pack(clip: VideoEntry) -> str:
                what = _pack(clip, paths[clip.name], packing, known, left[clip.name])
                progress.advance(1)
                return what

            outcomes |= _each(unpacked, pack, paths)
        finally:
            known.save()
            for folder in {path.parent for path in paths.values()}:
                sweep(folder)
    return {clip.name: outcomes[clip.name] for clip in clips}


def _each(clips: list[VideoEntry], work: Callable[[VideoEntry], T], paths: dict[str, Path]) -> dict[str, T]:
    """Apply `work` to each clip in threads: FFmpeg, the resize, the JPEG encoder and hashing all release the
    GIL. Raises TargetError for a pack that cannot be written.
    """
    pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="pack")
    jobs = {pool.submit(work, clip): clip.name for clip in clips}
    results: dict[str, T] = {}
    try:
        for job in as_completed(jobs):
            name = jobs[job]
            try:
                results[name] = job.result()
            except OSError as error:
                raise TargetError(
                    f"{paths[name]}: cannot be written ({error.strerror or error}); make room, or choose "
                    f"another --cache-dir"
                ) from error
    finally:
        pool.shutdown(cancel_futures=True)
    return results


@dataclass(frozen=True, slots=True)
class _Video:
    """A video that has to be packed."""

    source: Path
    sha256: str
    stamp: Stamp


def _find(clip: VideoEntry, path: Path, packing: Packing, known: KnownVideos) -> str | _Video:
    """What became of a video that need not be packed, because there is a sound pack of the same bytes, under
    this name or another, or because it cannot be used. The pack of a video that has gone is kept.
    """
    if clip.source is not None and not (clip.source.is_file() or clip.source.is_dir()):
        return "a link to nothing, or not a file"  # reading a pipe would wait for ever
    packed = read_pack(path)
    if packed is not None and (packed.packing != packing or not is_sound(path, packed)):
        packed = None
    if clip.source is None:
        return _MISSING if packed is None else _KEPT
    try:
        stamp = Stamp.of(clip.source)
        if packed is not None and not known.is_of(packed, clip.name, clip.source, stamp):
            packed = None
        if packed is not None and known.knows(clip.name, packed):
            return _KEPT
        sha256 = bytes_sha256(clip.source)
    except UnreadableError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    if packed is not None:  # packed by a version that did not record of what
        known.add(sha256, clip.name, path, packed, stamp)
        return _KEPT
    if not known.lies(clip.name, sha256) and known.take(sha256, clip.name, path, packing, stamp):
        return _KEPT
    return _Video(clip.source, sha256, stamp)


def _pack(clip: VideoEntry, path: Path, packing: Packing, known: KnownVideos, video: _Video) -> str:
    """Pack one video: `_NEW`, or why it cannot be used."""
    try:
        written = write_pack(video.source, path, packing)
    except UnreadableError as error:
        return str(error)
    if written.stamp == video.stamp:  # it did not change while it was read
        known.add(video.sha256, clip.name, path, written, video.stamp)
    return _NEW


def _note_ignored(spec: VideoSpec, data_dir: Path, index_dir: Path, listing: VideoListing) -> list[str]:
    """A note on files that are neither videos nor frames."""
    folder = pack_path(spec, data_dir, index_dir, "-").parent
    lines = ((os.fsdecode(path), kind) for path, kind in listing.ignored)
    where = write_list(folder / "videos.npz", "ignored", lines)
    if not listing.ignored:
        return []
    read = f"videos ({', '.join(VIDEO_SUFFIXES[:5])} and their like) and folders of frames"
    return [describe_ignored(data_dir / spec.root, listing.ignored, where, read)]


def _note_frames(spec: VideoSpec, data_dir: Path, index_dir: Path, clips: list[VideoEntry]) -> list[str]:
    """Notes on images beside a sequence's frames, and on missing frames."""
    left_out: list[tuple[str, str]] = []
    lacking = n_missing = 0
    for clip in clips:
        if clip.source is not None and clip.source.is_dir():
            try:
                frames = find_sequence(clip.source)
            except (OSError, UnreadableError):  # which packing it will report
                continue
            left_out += [(f"{clip.name}/{path.name}", "not of its frames") for path in frames.left_out]
            lacking, n_missing = lacking + (frames.n_missing > 0), n_missing + frames.n_missing
    where = write_list(
        pack_path(spec, data_dir, index_dir, "-").parent / "videos.npz", "other-images", left_out
    )
    notes = []
    if left_out:
        listed = f", all in {where}" if where else ""
        n_folders = len({name.rpartition("/")[0] for name, _ in left_out})
        notes.append(
            f"{shown(spec.name)}: {len(left_out):,} images in {n_folders:,} folders are none of the frames, "
            f"by their names, and are left out ({few([shown(name) for name, _ in left_out])}){listed}"
        )
    if n_missing:
        notes.append(
            f"{shown(spec.name)}: {n_missing:,} frames are missing in {lacking:,} folders, by the numbers "
            f"in their names; the others are taken as if they followed one another"
        )
    return notes


def _problems(missing: tuple[str, ...], damaged: dict[str, str]) -> list[str]:
    """One clause per problem."""
    problems = []
    if missing:
        problems.append(
            f"{len(missing):,} listed videos are not there ({few([shown(name) for name in missing])})"
        )
    if damaged:
        named = [f"{shown(name)}: {damaged[name]}" for name in sorted(damaged)]
        problems.append(f"{len(damaged):,} videos cannot be used ({few(named)})")
    return problems
