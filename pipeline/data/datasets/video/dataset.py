"""One split of a prepared target of videos, and its frames as images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.datasets import decode
from pipeline.data.datasets.dataset import UNLABELLED, Dataset
from pipeline.data.datasets.video.adopt import adopt
from pipeline.data.datasets.video.pack import OpenPack, PackInfo, Stamp, read_pack
from pipeline.data.datasets.video.pack_record import KnownVideos, command_of, pack_path, read_record
from pipeline.data.datasets.video.spec import VideoEntry, VideoSpec
from sskt.errors import TargetError, UnreadableError, shown

_OPEN_PACKS = 512  # at a time
_TARGET = 1 << 40  # between the ids of two joined targets


def load_videos(spec: VideoSpec, split: str, data_dir: Path, index_dir: Path) -> Dataset:
    """Open one split; ids are positions in its list, also where videos are left out.

    Raises TargetError if the target is not prepared, or its videos have changed since.
    """
    record = read_record(spec, data_dir, index_dir) or adopt(spec, data_dir, index_dir)
    if record is None and split == UNLABELLED:
        prepare = command_of("prepare", spec, data_dir, index_dir)
        raise TargetError(f"{spec.name}: its videos without labels are not prepared; run `{prepare}`")
    if record is None:
        raise TargetError(_first_commands(spec, data_dir, index_dir))
    command = f"run `{command_of('prepare', spec, data_dir, index_dir, *record.command_words(spec))}`"
    listing = spec.list_videos(data_dir)
    listed = listing.clips[split]
    left_out, known = record.left_out, KnownVideos(spec, data_dir, index_dir)
    ids, packs, paths, labels, multi_hot = [], [], [], [], []
    for number, clip in enumerate(listed):
        if clip.name in left_out:
            continue
        path = pack_path(spec, data_dir, index_dir, clip.name)
        packed = read_pack(path)
        if packed is None or packed.packing != record.packing:
            raise TargetError(f"{spec.name}: {shown(clip.name)} is not packed, or no longer; {command} again")
        _require_unchanged(clip, packed, command, known)
        ids.append(number)
        packs.append(packed)
        paths.append(path)
        labels.append(clip.label)
        multi_hot.append(clip.multi_hot)
    known.save()
    if not ids:
        raise TargetError(
            f"{spec.name}: none of the {len(listed):,} videos of the {split} split is there; {command}"
        )
    notes = list(listing.notes)
    if len(ids) < len(listed):
        notes.append(
            f"{spec.name}: {len(listed) - len(ids):,} of {len(listed):,} {split} videos are left out, "
            f"as --allow-missing said"
        )
    return Dataset(
        target=spec.name,
        split=split,
        kind="video",
        classes=() if split == UNLABELLED else listing.classes,
        ids=np.array(ids, dtype=np.int64),
        labels=np.array(labels, dtype=np.int64),
        sizes=np.array([(p.n_frames, p.height, p.width) for p in packs], dtype=np.int32),
        contents=np.array([list(p.content) for p in packs], dtype=np.uint8),
        access=Packs(paths, packs, [listed[number].name for number in ids]),
        notes=tuple(notes),
        multi_hot=np.array(multi_hot, dtype=np.int8) if spec.is_multilabel else None,
    )


def frames_dataset(dataset: Dataset) -> Dataset:
    """Every frame of every video as an image of its own, video after video."""
    counts = dataset.sizes[:, 0].astype(np.int64)
    assert isinstance(dataset.access, Packs)  # noqa: S101 - the access of every index of videos
    n = int(counts.sum())
    return replace(
        dataset,
        kind="files",
        ids=np.arange(n, dtype=np.int64),
        labels=np.broadcast_to(np.int64(0), n),
        multi_hot=None,
        sizes=np.repeat(dataset.sizes[:, 1:], counts, axis=0),
        contents=np.broadcast_to(np.uint8(0), (n, 16)),
        access=_Frames(dataset.access, first_frames(dataset)),
    )


def join_videos(datasets: Sequence[Dataset]) -> Dataset:
    """The videos of several targets as one dataset without labels (all are of class 0). The first one's keep
    their ids; those of the others get new ones, which depend on their own id and their target's place.
    """
    first, packs = datasets[0], []
    for dataset in datasets:
        assert isinstance(dataset.access, Packs)  # noqa: S101 - the access of every index of videos
        packs.append(dataset.access)
    ids = np.concatenate([place * _TARGET + dataset.ids for place, dataset in enumerate(datasets)])
    return replace(
        first,
        ids=ids,
        labels=np.zeros(len(ids), dtype=np.int64),
        sizes=np.concatenate([dataset.sizes for dataset in datasets]),
        contents=np.concatenate([dataset.contents for dataset in datasets]),
        access=Packs.joined(packs),
        multi_hot=None,
    )


def first_frames(dataset: Dataset) -> NDArray[np.int64]:
    """The row of each video's first frame in `frames_dataset`: int64 (N,)."""
    counts = dataset.sizes[:, 0].astype(np.int64)
    return np.cumsum(counts) - counts


class Packs:
    """Access to packed videos; the image of a video is its middle frame. See `Images`."""

    def __init__(self, paths: list[Path], packs: list[PackInfo], names: list[str]) -> None:
        """`names` are those of the target's list, or paths below its folder."""
        self._paths, self._packs, self.names = paths, packs, names
        self._opened = lru_cache(maxsize=_OPEN_PACKS)(self._open)

    def frame(self, row: int, number: int) -> bytes:
        """One frame of one video, as a JPEG file."""
        return self._opened(row).frame(number)

    def name_of(self, row: int) -> str:
        """See `Images.name_of`."""
        return shown(str(self._paths[row]))

    def pixels_of(self, row: int) -> NDArray[np.uint8]:
        """See `Images.pixels_of`."""
        return decode.to_pixels(self.encoded(row))

    def encoded(self, row: int) -> bytes:
        """See `Images.encoded`."""
        return self.frame(row, self._packs[row].n_frames // 2)

    def stack(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """See `Images.stack`."""
        return np.stack([self.pixels_of(int(row)) for row in rows])

    def take(self, rows: NDArray[np.int64]) -> Packs:
        """See `Images.take`."""
        paths, packs, names = self._paths, self._packs, self.names
        return Packs([paths[r] for r in rows], [packs[r] for r in rows], [names[r] for r in rows])

    @classmethod
    def joined(cls, parts: Sequence[Packs]) -> Packs:
        """Access to the videos of the first part, then of the others."""
        paths = [path for part in parts for path in part._paths]
        infos = [info for part in parts for info in part._packs]
        return cls(paths, infos, [name for part in parts for name in part.names])

    def _open(self, row: int) -> OpenPack:
        return OpenPack(self._paths[row], self._packs[row])


@dataclass(frozen=True, slots=True, eq=False)
class _Frames:
    """Access to frames as images. See `Images`."""

    packs: Packs
    firsts: NDArray[np.int64]
    rows: NDArray[np.int64] | None = field(default=None)  # None: every frame

    def name_of(self, row: int) -> str:
        video, frame = self._place(row)
        return f"{self.packs.name_of(video)} frame {frame}"

    def pixels_of(self, row: int) -> NDArray[np.uint8]:
        try:
            return decode.to_pixels(self.encoded(row))
        except (OSError, ValueError, SyntaxError) as error:
            raise TargetError(
                f"{self.name_of(row)}: is damaged since it was packed ({error}); run sskt prepare again"
            ) from None

    def encoded(self, row: int) -> bytes:
        return self.packs.frame(*self._place(row))

    def stack(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        return np.stack([self.pixels_of(int(row)) for row in rows])

    def take(self, rows: NDArray[np.int64]) -> _Frames:
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def _place(self, row: int) -> tuple[int, int]:
        at = row if self.rows is None else int(self.rows[row])
        video = int(np.searchsorted(self.firsts, at, side="right")) - 1
        return video, at - int(self.firsts[video])


def _require_unchanged(clip: VideoEntry, packed: PackInfo, command: str, known: KnownVideos) -> None:
    if clip.source is None:
        return
    try:
        same = known.is_of(packed, clip.name, clip.source, Stamp.of(clip.source))
    except OSError as error:
        raise TargetError(
            f"{shown(str(clip.source))}: cannot be read ({error.strerror or error}); restore it"
        ) from None
    except UnreadableError:  # the frames of a folder have changed
        same = False
    if not same:
        raise TargetError(f"{shown(str(clip.source))}: has changed since it was packed; {command} again")


def _first_commands(spec: VideoSpec, data_dir: Path, index_dir: Path) -> str:
    """The commands that an unprepared target takes, one per line."""
    root = data_dir / spec.root
    first = "" if root.is_dir() else f"\n  first {spec.how_to_prepare}"
    steps = (("prepare",), ("precompute", "--source imagenet --source places365"), ("train",))
    commands = [command_of(verb, spec, data_dir, index_dir, *words) for verb, *words in steps]
    return f"{spec.name}: is not prepared; a target of videos takes three commands:{first}" + "".join(
        f"\n  {command}" for command in commands
    )
