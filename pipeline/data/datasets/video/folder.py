"""videofolder:PATH, a user's class folders of videos, or of folders of frames.

ROOT/SPLIT/CLASS/ (see `pipeline.data.datasets.folder_splits`), or ROOT/CLASS/, of which a fifth is held out;
ROOT/unlabelled/ holds videos without labels. unlabelled-videos:PATH is any folder of videos without labels.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.datasets.class_folders import class_names, hold_out
from pipeline.data.datasets.dataset import UNLABELLED, UNLABELLED_VIDEOS, Dataset, no_target, own_folder
from pipeline.data.datasets.folder_splits import has_unlabelled, has_val, layout_of
from pipeline.data.datasets.video.decode import VIDEO_SUFFIXES
from pipeline.data.datasets.video.family import Videos
from pipeline.data.datasets.video.sequence import FRAME_SUFFIXES
from pipeline.data.datasets.video.spec import VideoEntry, VideoListing, VideoSpec
from pipeline.data.datasets.walk import Ignored, is_hidden
from sskt.errors import TargetError, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderSpec(VideoSpec):
    """A user's own folder of videos."""

    is_own_folder: bool = True

    def list_videos(self, data_dir: Path) -> VideoListing:
        """See `VideoSpec.list_videos`."""
        return _list_folders(self, data_dir / self.root)


class VideoFolder(Videos[FolderSpec]):
    """A user's folders of videos."""

    name, is_path = "videofolder", True

    def from_path(self, path: str) -> FolderSpec:
        """See `Family.from_path`."""
        root = own_folder("videofolder", path)
        return FolderSpec(
            name=f"videofolder:{root.name}",
            family="videofolder",
            n_classes=None,
            how_to_prepare=(
                f"put the videos as {root}/train/CLASS/*.mp4 and {root}/val/CLASS/*.mp4, or as "
                f"{root}/CLASS/*.mp4 to have a fifth of each class held out; a folder of frames "
                f"stands for a video as well"
            ),
            root=root,
        )

    def has_val(self, spec: FolderSpec, data_dir: Path) -> bool:
        """See `Family.has_val`."""
        return has_val(spec, data_dir)

    def has_unlabelled(self, spec: FolderSpec, data_dir: Path) -> bool:
        """See `Family.has_unlabelled`."""
        return has_unlabelled(spec, data_dir)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlabelledSpec(VideoSpec):
    """Any folder of videos without labels."""

    is_own_folder: bool = True

    def list_videos(self, data_dir: Path) -> VideoListing:
        """See `VideoSpec.list_videos`."""
        root = data_dir / self.root
        if not root.is_dir():
            raise TargetError(f"{shown(str(root))}: no such folder; {self.how_to_prepare}")
        others = _Others(root)
        clips = {UNLABELLED: _clips_without_labels(root, root, others)}
        return VideoListing((), clips, others.notes, tuple(others.ignored))


class UnlabelledVideos(Videos[UnlabelledSpec]):
    """Folders of videos without labels, of which all videos below are taken. There are no other splits."""

    name, is_path, has_labels = UNLABELLED_VIDEOS, True, False

    def from_path(self, path: str) -> UnlabelledSpec:
        """See `Family.from_path`."""
        root = own_folder(self.name, path)
        return UnlabelledSpec(
            name=f"{self.name}:{root.name}",
            family=self.name,
            n_classes=None,
            how_to_prepare=f"put videos anywhere below {root}",
            root=root,
        )

    def load(self, spec: UnlabelledSpec, split: str, data_dir: Path, index_dir: Path) -> Dataset:
        """See `Family.load`."""
        if split != UNLABELLED:
            raise TargetError(no_target(spec))
        return Videos.load(self, spec, split, data_dir, index_dir)

    def has_unlabelled(self, spec: UnlabelledSpec, data_dir: Path) -> bool:  # noqa: ARG002
        """See `Family.has_unlabelled`."""
        return True


def videos_below(folder: Path) -> tuple[list[Path], tuple[Ignored, ...], tuple[str, ...]]:
    """The videos below a folder, sorted: files, folders of frames, or the folder itself if its frames lie
    loose in it; the files that are neither, and notes on them.
    """
    others = _Others(folder)
    return sorted(_videos_in(folder, others)), tuple(others.ignored), others.notes


def _list_folders(spec: VideoSpec, root: Path) -> VideoListing:
    """ROOT/SPLIT/CLASS/ (see `pipeline.data.datasets.folder_splits`), or ROOT/CLASS/, of which a fifth is
    held out.
    """
    if not root.is_dir():
        raise TargetError(f"{shown(str(root))}: no such folder; {spec.how_to_prepare}")
    layout = layout_of(root, videos=True)
    others = _Others(root)
    if layout.divided:
        train = layout.folder("train", spec.how_to_prepare)
        layout.folder("test", spec.how_to_prepare)
        classes, clips, notes = class_names(spec, train, train), {}, list(layout.notes)
        for split, folder in layout.labelled.items():
            class_names(spec, folder, train)  # refuses classes that the train split does not have
            clips[split] = _clips_below(folder, root, classes, others)
        if UNLABELLED in layout.folders:
            clips[UNLABELLED] = _clips_without_labels(layout.folders[UNLABELLED], root, others)
        return VideoListing(classes, clips, (*notes, *others.notes), tuple(others.ignored))
    classes = class_names(spec, root, root)
    every = _clips_below(root, root, classes, others)
    paths = np.array([os.fsencode(clip.name) for clip in every], dtype=np.bytes_)
    in_test = hold_out(paths, np.array([clip.label for clip in every], dtype=np.int64))
    clips = {
        "train": [clip for clip, out in zip(every, in_test, strict=True) if not out],
        "test": [clip for clip, out in zip(every, in_test, strict=True) if out],
    }
    note = (
        f"{shown(str(root))}: has no train/ and val/, so a fixed fifth of each class is held out "
        f"({in_test.sum()} videos)"
    )
    return VideoListing(classes, clips, (*layout.notes, note, *others.notes), tuple(others.ignored))


class _Others:
    """Collects the files among the videos below `root` that are neither."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.ignored: list[Ignored] = []
        self._mixed: list[Path] = []

    def add(self, path: Path, kind: str) -> None:
        self.ignored.append((os.fsencode(path.relative_to(self._root)), kind))

    def add_mixed(self, folder: Path, images: list[Path]) -> None:
        """Add images in a folder that holds videos as well."""
        self._mixed.append(folder)
        for path in images:
            self.add(path, "picture beside videos")

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence on folders that hold both videos and images, if there are any."""
        if not self._mixed:
            return ()
        more = f", as do {len(self._mixed) - 1:,} other folders" if len(self._mixed) > 1 else ""
        folder = shown(str(self._mixed[0]))
        return (f"{folder}: holds pictures beside videos{more}; the videos are taken, the pictures left out",)


def _clips_below(folder: Path, root: Path, classes: tuple[str, ...], others: _Others) -> list[VideoEntry]:
    clips = []
    for label, name in enumerate(classes):
        videos = _videos_in(folder / name, others) if (folder / name).is_dir() else []
        sources = sorted(source for source in videos if source != folder / name)
        if not sources and (folder / name).is_dir():
            raise TargetError(
                f"{shown(str(folder / name))}: no video in this class folder, expected files "
                f"{', '.join(VIDEO_SUFFIXES[:4])}, ... or folders of frames; fill or remove it"
            )
        clips += [VideoEntry(source.relative_to(root).as_posix(), label, source) for source in sources]
    return clips


def _clips_without_labels(folder: Path, root: Path, others: _Others) -> list[VideoEntry]:
    clips = [
        VideoEntry(source.relative_to(root).as_posix(), -1, source)
        for source in sorted(_videos_in(folder, others))
        if source != folder  # pictures lie loose in it, and there is no video
    ]
    if not clips:
        raise TargetError(
            f"{shown(str(folder))}: no video in this folder, expected files {', '.join(VIDEO_SUFFIXES[:4])}, "
            f"... or folders of frames; fill or remove it"
        )
    return clips


def _videos_in(folder: Path, others: _Others) -> list[Path]:
    """Find video files and folders of frames below a folder, or the folder itself if it holds frames and no
    video; `others` receives the rest.
    """
    videos: list[Path] = []
    images: list[Path] = []
    with os.scandir(folder) as entries:  # tells folders without a stat per frame
        for entry in sorted(entries, key=lambda entry: os.fsencode(entry.name)):
            path, suffix = Path(entry.path), Path(entry.name).suffix.lower()
            if is_hidden(entry.name):
                others.add(path, "hidden folder" if entry.is_dir() else "hidden")
            elif entry.is_dir():
                videos += _videos_in(path, others)
            elif suffix in VIDEO_SUFFIXES:
                videos.append(path)
            elif suffix in FRAME_SUFFIXES:
                images.append(path)
            else:
                others.add(path, suffix or "without extension")
    if len(images) > 1 and len(videos) == 1 and videos[0].suffix.lower() == ".gif":
        others.add(videos.pop(), "preview of frames")
    if images and videos:
        others.add_mixed(folder, images)
    return videos or ([folder] if images else [])
