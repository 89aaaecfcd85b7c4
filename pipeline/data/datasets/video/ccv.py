"""CCV, Columbia Consumer Video (Jiang et al., ICMR 2011): YouTube videos of 20 categories, of which a video
shows one, several or none.

The release has labels, splits and features, and no videos: a person must fetch them by their ids, and many
are gone. Label files and videos lie in DATA_DIR/ccv; ids are places in the official lists.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.datasets.dataset import SPLITS
from pipeline.data.datasets.video.decode import VIDEO_SUFFIXES
from pipeline.data.datasets.video.family import Videos
from pipeline.data.datasets.video.spec import VideoEntry, VideoListing, VideoSpec
from pipeline.data.datasets.walk import Ignored, is_hidden
from sskt.errors import TargetError, shown

_CATEGORIES = "categoryName.txt"
_VIDEOS = "videos"
_N_CLASSES = 20
_ID = re.compile(r"[\w-]+", re.ASCII)  # YouTube's


@dataclass(frozen=True, slots=True, kw_only=True)
class CcvSpec(VideoSpec):
    """CCV, of whose videos (80 s on average) one of five frames is packed."""

    is_multilabel: bool = True
    every: int = 5

    def list_videos(self, data_dir: Path) -> VideoListing:
        """See `VideoSpec.list_videos`. Raises TargetError also for lists that contradict each other."""
        root = data_dir / self.root
        classes = tuple(self._lines(root / _CATEGORIES))
        if len(set(classes)) != _N_CLASSES:
            raise TargetError(
                f"{root / _CATEGORIES}: names {len(set(classes))} categories, expected {_N_CLASSES}; restore "
                f"the official file"
            )
        listed = {split: self._rows(root, split) for split in SPLITS}
        _require_distinct(root, [name for rows in listed.values() for name, _ in rows])
        found, notes, ignored = _find_videos(root, {name for rows in listed.values() for name, _ in rows})
        clips = {
            split: [
                VideoEntry(name, row.index(1) if 1 in row else -1, found.get(name), row) for name, row in rows
            ]
            for split, rows in listed.items()
        }
        return VideoListing(classes, clips, notes, ignored)

    def _rows(self, root: Path, split: str) -> list[tuple[str, tuple[int, ...]]]:
        """The id and the labels of each video of a split."""
        ids, labels = root / f"{split}VidID.txt", root / f"{split}Label.txt"
        names, rows = self._lines(ids), self._lines(labels)
        if len(names) != len(rows):
            raise TargetError(
                f"{labels}: has {len(rows):,} rows for the {len(names):,} ids of {ids.name}, expected one "
                f"for each; restore the official files"
            )
        for number, (name, row) in enumerate(zip(names, rows, strict=True), start=1):
            if not _ID.fullmatch(name):
                raise TargetError(
                    f"{ids}: line {number} is {shown(name)!r}, expected a YouTube id; restore the official "
                    "file"
                )
            if len(row.split()) != _N_CLASSES or set(row.split()) - {"0", "1"}:
                raise TargetError(
                    f"{labels}: line {number} is {shown(row)!r}, expected {_N_CLASSES} times 0 or 1; restore "
                    f"the official file"
                )
        return [(name, tuple(map(int, row.split()))) for name, row in zip(names, rows, strict=True)]

    def _lines(self, path: Path) -> list[str]:
        """The lines of a label file without the spaces around them; empty ones at the end are none."""
        try:
            lines = path.read_text(encoding="utf-8").rstrip().split("\n")
        except FileNotFoundError:
            raise TargetError(f"{path}: no such file; {self.how_to_prepare}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise TargetError(f"{path}: cannot be read ({error}); restore the official file") from None
        return [line.strip() for line in lines]


class Ccv(Videos[CcvSpec]):
    """The family of one target."""

    name = "ccv"
    targets = (
        CcvSpec(
            name="ccv",
            family="ccv",
            n_classes=_N_CLASSES,
            how_to_prepare=(
                "ask for the CCV database on its page at Columbia University, put its categoryName.txt, "
                "trainVidID.txt, trainLabel.txt, testVidID.txt and testLabel.txt into DATA_DIR/ccv/, and "
                "fetch the YouTube videos of these ids as DATA_DIR/ccv/videos/ID.mp4 or another suffix, e.g. "
                "by yt-dlp -o 'DATA_DIR/ccv/videos/%(id)s.%(ext)s' (DATA_DIR is --data-dir); many are gone, "
                "--allow-missing goes on without them"
            ),
            root=Path("ccv"),
        ),
    )


def _require_distinct(root: Path, names: Sequence[str]) -> None:
    """Raise TargetError for an id that is listed twice, be it in one split or in both."""
    seen = set[str]()
    for name in names:
        if name in seen:
            raise TargetError(
                f"{root}: its lists have the id {name} twice, expected every video once; restore the "
                f"official files"
            )
        seen.add(name)


def _find_videos(
    root: Path, listed: set[str]
) -> tuple[dict[str, Path], tuple[str, ...], tuple[Ignored, ...]]:
    """The video, or folder of frames, of each listed id that has one; a note on ids that have several; and
    what belongs to no id.
    """
    folder, found = root / _VIDEOS, dict[str, Path]()
    several, ignored = list[str](), list[Ignored]()
    try:
        entries = sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise TargetError(
            f"{folder}: cannot be listed ({error.strerror or error}); allow reading it"
        ) from None
    for entry in entries:
        is_folder = entry.is_dir()
        name = entry.name if is_folder else entry.stem
        if is_hidden(entry.name):
            ignored.append((_path(entry, root), "hidden"))
        elif not is_folder and entry.suffix.lower() not in VIDEO_SUFFIXES:
            ignored.append((_path(entry, root), entry.suffix.lower() or "without extension"))
        elif name not in listed:
            ignored.append((_path(entry, root), "of no listed id"))
        elif name in found:
            several.append(entry.name)
            ignored.append((_path(entry, root), "second of an id"))
        else:
            found[name] = entry
    note = (
        f"{folder}: {len(several):,} files are second videos of an id, of which the first by name is taken "
        f"({several[0]} is left out); remove what is wrong"
        if several
        else ""
    )
    return found, (note,) if note else (), tuple(ignored)


def _path(entry: Path, root: Path) -> bytes:
    return os.fsencode(entry.relative_to(root).as_posix())
