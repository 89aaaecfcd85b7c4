"""Which videos a target has, and which of them are for training: official lists, annotation JSON, or folders.

Reads no video. A listed video's name is its path below the folder of videos, as the lists write it.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.datasets.image_folder import class_names, held_out, splits_of
from pipeline.data.datasets.registry import DatasetSpec, Videos
from pipeline.data.datasets.video.decode import VIDEO_SUFFIXES
from pipeline.data.datasets.video.sequence import FRAME_SUFFIXES
from pipeline.data.datasets.walk import Ignored, is_hidden
from sskt.errors import TargetError
from sskt.names import shown

SPLITS = ("train", "test")


@dataclass(frozen=True, slots=True)
class VideoEntry:
    """One video of a list; `source` is None if it is nowhere to be found."""

    name: str  # "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi"
    label: int
    source: Path | None


@dataclass(frozen=True, slots=True)
class Listing:
    """The videos of each split, in the order of the lists."""

    classes: tuple[str, ...]
    clips: dict[str, list[VideoEntry]]  # by split
    notes: tuple[str, ...] = ()
    ignored: tuple[Ignored, ...] = ()  # files that are neither videos nor frames


def list_videos(spec: DatasetSpec, data_dir: Path) -> Listing:
    """Every listed video of a target. Raises TargetError if the lists are missing or cannot be read."""
    assert spec.videos is not None  # noqa: S101 - asked of targets of videos only
    assert spec.root is not None  # noqa: S101
    root = data_dir / spec.root
    if spec.videos.lists is None:
        return _of_folders(spec, root)
    found = _official(spec, spec.videos, root)
    if len(found.classes) != spec.n_classes:
        raise TargetError(
            f"{root}: its lists name {len(found.classes)} classes, expected {spec.n_classes}; "
            f"{spec.how_to_prepare}"
        )
    return found


def _official(spec: DatasetSpec, videos: Videos, root: Path) -> Listing:
    lists = root / str(videos.lists)
    if lists.is_dir():
        classes, named = _READERS[spec.name.partition(":")[0]](lists, videos.split)
    else:
        annotation = root / videos.annotation
        if not annotation.is_file():
            raise TargetError(f"{root}: neither {lists.name}/ nor {annotation.name}; {spec.how_to_prepare}")
        classes, named = _annotation(annotation)
    sources = _Sources(root, videos.folders)
    label_of = {name: label for label, name in enumerate(classes)}
    clips = {
        split: [
            VideoEntry(name, label_of[name.partition("/")[0]], sources.find(name)) for name in named[split]
        ]
        for split in SPLITS
    }
    return Listing(classes, clips)


_Named = tuple[tuple[str, ...], dict[str, list[str]]]  # classes, and the names of each split


def _ucf101(lists: Path, split: int) -> _Named:
    """classInd.txt, trainlist0N.txt and testlist0N.txt."""
    lines = _lines(lists / "classInd.txt")
    classes = tuple(line.split(maxsplit=1)[1] for line in lines if len(line.split(maxsplit=1)) == 2)
    files = {"train": f"trainlist{split:02d}.txt", "test": f"testlist{split:02d}.txt"}
    named = {part: [line.split()[0] for line in _lines(lists / file)] for part, file in files.items()}
    for part, names in named.items():
        strange = [name for name in names if name.partition("/")[0] not in classes]
        if strange:
            raise TargetError(f"{lists / files[part]}: {strange[0]} is of no class in classInd.txt")
    return classes, named


def _hmdb51(lists: Path, split: int) -> _Named:
    """CLASS_test_splitN.txt: every video of a class with 1 (train), 2 (test) or 0 (neither)."""
    pattern = re.compile(rf"(.+)_test_split{split}\.txt")
    found = {m[1]: path for path in sorted(lists.iterdir()) if (m := pattern.fullmatch(path.name))}
    if not found:
        raise TargetError(f"{lists}: no file CLASS_test_split{split}.txt; put the official lists there")
    named: dict[str, list[str]] = {part: [] for part in SPLITS}
    for name, path in found.items():
        for line in _lines(path):
            video, _, use = line.rpartition(" ")
            if use in ("1", "2"):
                named[SPLITS[int(use) - 1]].append(f"{name}/{video.strip()}")
    return tuple(found), named


_READERS = {"ucf101": _ucf101, "hmdb51": _hmdb51}


def _annotation(path: Path) -> _Named:
    """The JSON of 3D-ResNets-PyTorch: labels, and a database of subset and label by name without suffix."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        classes = tuple(str(name) for name in content["labels"])
        subset = {"training": "train", "validation": "test"}
        named: dict[str, list[str]] = {part: [] for part in SPLITS}
        for key, entry in content["database"].items():
            if entry["subset"] in subset:
                label = entry["annotations"]["label"]
                if label not in classes:
                    raise TargetError(f"{path}: {key} is of class {label!r}, which is not among its labels")
                named[subset[entry["subset"]]].append(f"{label}/{key}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TargetError(
            f"{path}: is no annotation in the form of 3D-ResNets-PyTorch ({type(error).__name__}: {error})"
        ) from None
    return classes, named


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TargetError(f"{path}: cannot be read ({error}); put the official list there") from None
    return [line.strip() for line in lines if line.strip()]


class _Sources:
    """Finds videos by listed name: as a file, whatever its suffix, or as a folder of extracted frames."""

    def __init__(self, root: Path, folders: tuple[str, ...]) -> None:
        self._there: dict[tuple[str, str], Path] = {}  # (class, stem)
        for parent in (root / name for name in reversed(folders)):  # the first has the last word
            for entry in (e for c in _sorted(parent) if c.is_dir() for e in _sorted(c)):
                if entry.suffix.lower() in VIDEO_SUFFIXES and not entry.is_dir():
                    self._there[entry.parent.name, entry.stem] = entry
                elif entry.is_dir():
                    self._there[entry.parent.name, entry.name] = entry

    def find(self, name: str) -> Path | None:
        folder, _, video = name.partition("/")
        stem = video.removesuffix(Path(video).suffix) if video.lower().endswith(VIDEO_SUFFIXES) else video
        return self._there.get((folder, stem))


def _sorted(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _of_folders(spec: DatasetSpec, root: Path) -> Listing:
    """ROOT/SPLIT/CLASS/ (see `pipeline.data.datasets.folder_splits`), or ROOT/CLASS/, of which a fifth is
    held out.
    """
    if not root.is_dir():
        raise TargetError(f"{shown(str(root))}: no such folder; {spec.how_to_prepare}")
    layout = splits_of(spec, root)
    others = _Others(root)
    if layout.divided:
        train = layout.folder("train", spec.how_to_prepare)
        layout.folder("test", spec.how_to_prepare)
        classes, clips, notes = class_names(spec, train, train), {}, list(layout.notes)
        for split, folder in layout.folders.items():
            class_names(spec, folder, train)  # refuses classes that the train split does not have
            clips[split] = _clips_below(folder, root, classes, others)
        return Listing(classes, clips, (*notes, *others.notes), tuple(others.ignored))
    classes = class_names(spec, root, root)
    every = _clips_below(root, root, classes, others)
    paths = np.array([os.fsencode(clip.name) for clip in every], dtype=np.bytes_)
    held = held_out(paths, np.array([clip.label for clip in every], dtype=np.int64))
    clips = {
        "train": [clip for clip, out in zip(every, held, strict=True) if not out],
        "test": [clip for clip, out in zip(every, held, strict=True) if out],
    }
    note = (
        f"{shown(str(root))}: has no train/ and val/, so a fixed fifth of each class is held out "
        f"({held.sum()} videos)"
    )
    return Listing(classes, clips, (*layout.notes, note, *others.notes), tuple(others.ignored))


class _Others:
    """What lies among the videos below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.ignored: list[Ignored] = []
        self._mixed: list[Path] = []

    def add(self, path: Path, kind: str) -> None:
        self.ignored.append((os.fsencode(path.relative_to(self._root)), kind))

    def add_mixed(self, folder: Path, images: list[Path]) -> None:
        """Pictures in a folder that holds videos as well."""
        self._mixed.append(folder)
        for path in images:
            self.add(path, "picture beside videos")

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence on folders that hold both, if there are any."""
        if not self._mixed:
            return ()
        more = f", as do {len(self._mixed) - 1:,} other folders" if len(self._mixed) > 1 else ""
        folder = shown(str(self._mixed[0]))
        return (f"{folder}: holds pictures beside videos{more}; the videos are taken, the pictures left out",)


def _clips_below(folder: Path, root: Path, classes: tuple[str, ...], others: _Others) -> list[VideoEntry]:
    clips = []
    for label, name in enumerate(classes):
        found = _videos_in(folder / name, others) if (folder / name).is_dir() else []
        sources = sorted(source for source in found if source != folder / name)
        if not sources and (folder / name).is_dir():
            raise TargetError(
                f"{shown(str(folder / name))}: no video in this class folder, expected files "
                f"{', '.join(VIDEO_SUFFIXES[:4])}, ... or folders of frames; fill or remove it"
            )
        clips += [VideoEntry(source.relative_to(root).as_posix(), label, source) for source in sources]
    return clips


def _videos_in(folder: Path, others: _Others) -> list[Path]:
    """Video files and folders of frames below a folder, or the folder itself if it holds frames and no video;
    `others` receives the rest.
    """
    found: list[Path] = []
    images: list[Path] = []
    with os.scandir(folder) as entries:  # which knows folders without another look at each of many frames
        for entry in sorted(entries, key=lambda entry: os.fsencode(entry.name)):
            path, suffix = Path(entry.path), Path(entry.name).suffix.lower()
            if is_hidden(entry.name):
                others.add(path, "hidden folder" if entry.is_dir() else "hidden")
            elif entry.is_dir():
                found += _videos_in(path, others)
            elif suffix in VIDEO_SUFFIXES:
                found.append(path)
            elif suffix in FRAME_SUFFIXES:
                images.append(path)
            else:
                others.add(path, suffix or "without extension")
    if len(images) > 1 and len(found) == 1 and found[0].suffix.lower() == ".gif":
        others.add(found.pop(), "preview of frames")
    if images and found:
        others.add_mixed(folder, images)
    return found or ([folder] if images else [])
