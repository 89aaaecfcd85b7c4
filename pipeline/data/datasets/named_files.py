"""Files and folders that a user names one by one, not as a target, and what lies in them. Reads no file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.datasets.decode import FORMATS
from pipeline.data.datasets.video.decode import VIDEO_SUFFIXES
from pipeline.data.datasets.video.folder import videos_below
from pipeline.data.datasets.walk import describe_ignored, images_below
from sskt.errors import TargetError


@dataclass(slots=True)
class NamedFiles:
    """The images or videos that a user names, in the order given; those below a folder are sorted.

    unusable: rows of `paths` that cannot be read, and why. notes: sentences for the user.
    """

    paths: list[Path] = field(default_factory=list)
    unusable: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, path: Path, *, videos: bool) -> None:
        """Add a file, or all images or videos below a folder. What there is none of is unusable."""
        if not path.is_dir():
            found = "not a file" if path.exists() else "no such file or folder"
            self._append(path, None if path.is_file() else found)
            return
        before = len(self.paths)
        try:
            (self._add_videos if videos else self._add_images)(path)
        except OSError as error:
            self._append(path, f"cannot be listed ({error.strerror or error})")
            return
        except TargetError as error:
            self._append(path, str(error))
            return
        if len(self.paths) == before:
            self._append(path, f"no {'video' if videos else 'image'} in this folder")

    def unusable_among(self, rows: Sequence[int]) -> dict[int, str]:
        """Those of `rows` that are known to be unusable, and why."""
        return {row: self.unusable[row] for row in rows if row in self.unusable}

    def _add_images(self, folder: Path) -> None:
        found, ignored = images_below(folder, in_classes=False)
        for path, stat in found:
            reason = None if stat is not None else "a link to nothing, or not a file"
            self._append(folder / os.fsdecode(path), reason)
        if ignored:
            suffixes = ", ".join(suffixes[0] for suffixes in FORMATS.values())
            self.notes.append(describe_ignored(folder, ignored, None, f"images ({suffixes} and their like)"))

    def _add_videos(self, folder: Path) -> None:
        found, ignored, notes = videos_below(folder)
        for path in found:
            sound = path.is_file() or path.is_dir()
            self._append(path, None if sound else "a link to nothing, or not a file")
        self.notes += notes
        if ignored:
            read = f"videos ({', '.join(VIDEO_SUFFIXES[:5])} and their like) and folders of frames"
            self.notes.append(describe_ignored(folder, ignored, None, read))

    def _append(self, path: Path, unusable: str | None) -> None:
        if unusable is not None:
            self.unusable[len(self.paths)] = unusable
        self.paths.append(path)


def list_named_files(names: Sequence[Path], *, videos: bool) -> NamedFiles:
    """What lies at `names`, each a file or a folder. Reads no file."""
    files = NamedFiles()
    for name in names:
        files.add(name, videos=videos)
    return files
