"""UCF101 and HMDB51: official videos, and lists of three official splits.

The lists are the authors' text files or, where there is no such folder, the JSON of 3D-ResNets-PyTorch. A
video's name is its path below the folder of videos, as the lists write it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.data.datasets.dataset import SPLITS
from pipeline.data.datasets.video.decode import VIDEO_SUFFIXES
from pipeline.data.datasets.video.family import Videos
from pipeline.data.datasets.video.spec import VideoEntry, VideoListing, VideoSpec
from sskt.errors import TargetError

_Named = tuple[tuple[str, ...], dict[str, list[str]]]  # classes, and the names of each split


@dataclass(frozen=True, slots=True, kw_only=True)
class OfficialSpec(VideoSpec):
    """One official split: where videos and lists lie below the root."""

    folders: tuple[str, ...]  # of class folders of videos, or of folders of extracted frames
    lists: str  # folder of the official lists
    read: Callable[[Path, int], _Named]  # reads the lists of a split
    annotation: str  # JSON file in the form of 3D-ResNets-PyTorch, read where there is no such folder

    def list_videos(self, data_dir: Path) -> VideoListing:
        """See `VideoSpec.list_videos`. Raises TargetError also for a wrong number of classes."""
        root = data_dir / self.root
        listing = self._list(root)
        if len(listing.classes) != self.n_classes:
            raise TargetError(
                f"{root}: its lists name {len(listing.classes)} classes, expected {self.n_classes}; "
                f"{self.how_to_prepare}"
            )
        return listing

    def _list(self, root: Path) -> VideoListing:
        lists = root / self.lists
        if lists.is_dir():
            classes, named = self.read(lists, self.split)
        else:
            annotation = root / self.annotation
            if not annotation.is_file():
                raise TargetError(
                    f"{root}: neither {lists.name}/ nor {annotation.name}; {self.how_to_prepare}"
                )
            classes, named = _annotation(annotation)
        sources = _Sources(root, self.folders)
        label_of = {name: label for label, name in enumerate(classes)}
        clips = {
            split: [
                VideoEntry(name, label_of[name.partition("/")[0]], sources.find(name))
                for name in named[split]
            ]
            for split in SPLITS
        }
        return VideoListing(classes, clips)


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
    files = {m[1]: path for path in sorted(lists.iterdir()) if (m := pattern.fullmatch(path.name))}
    if not files:
        raise TargetError(f"{lists}: no file CLASS_test_split{split}.txt; put the official lists there")
    named: dict[str, list[str]] = {part: [] for part in SPLITS}
    for name, path in files.items():
        for line in _lines(path):
            video, _, use = line.rpartition(" ")
            if use in ("1", "2"):
                named[SPLITS[int(use) - 1]].append(f"{name}/{video.strip()}")
    return tuple(files), named


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
    """Find videos by listed name: as a file, whatever its suffix, or as a folder of extracted frames."""

    def __init__(self, root: Path, folders: tuple[str, ...]) -> None:
        self._found: dict[tuple[str, str], Path] = {}  # (class, stem)
        for parent in (root / name for name in reversed(folders)):  # the first has the last word
            for entry in (e for c in _sorted(parent) if c.is_dir() for e in _sorted(c)):
                if entry.suffix.lower() in VIDEO_SUFFIXES and not entry.is_dir():
                    self._found[entry.parent.name, entry.stem] = entry
                elif entry.is_dir():
                    self._found[entry.parent.name, entry.name] = entry

    def find(self, name: str) -> Path | None:
        folder, _, video = name.partition("/")
        stem = video.removesuffix(Path(video).suffix) if video.lower().endswith(VIDEO_SUFFIXES) else video
        return self._found.get((folder, stem))


def _sorted(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _spec(
    name: str,
    n_classes: int,
    *,
    folders: tuple[str, ...],
    lists: str,
    read: Callable[[Path, int], _Named],
    annotation: str,
) -> OfficialSpec:
    return OfficialSpec(
        name=name,
        family="official_videos",
        n_classes=n_classes,
        how_to_prepare=(
            f"put the official videos into DATA_DIR/{name}/{folders[0]}/CLASS/ and their lists into "
            f"DATA_DIR/{name}/{lists}/ (DATA_DIR is --data-dir)"
        ),
        root=Path(name),
        folders=folders,
        lists=lists,
        read=read,
        annotation=annotation,
    )


class OfficialVideos(Videos[OfficialSpec]):
    """UCF101 and HMDB51."""

    name, official_splits = "official_videos", ("1", "2", "3")
    targets = (
        _spec(
            "ucf101",
            101,
            folders=("UCF-101", "jpg", "frames"),
            lists="ucfTrainTestlist",
            read=_ucf101,
            annotation="ucf101_01.json",
        ),
        _spec(
            "hmdb51",
            51,
            folders=("hmdb51_org", "jpg", "frames"),
            lists="testTrainMulti_7030_splits",
            read=_hmdb51,
            annotation="hmdb51_1.json",
        ),
    )

    def of_split(self, spec: OfficialSpec, split: str) -> OfficialSpec:
        """One of the three official splits; the first has the plain name."""
        if split not in self.official_splits:
            raise TargetError(f"target {spec.name}:{split}: its splits are 1, 2 and 3")
        number = int(split)
        name = spec.name if number == 1 else f"{spec.name}:{number}"
        return replace(
            spec, name=name, split=number, annotation=spec.annotation.replace("1.json", f"{number}.json")
        )
