"""Files and folders that a user names one by one, not as a target: what lies in them, and the images as
samples without labels. Nothing is kept of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.data.datasets.bit_depth import FULL, depth_of
from pipeline.data.datasets.checked_files import FACTS, Facts
from pipeline.data.datasets.dataset import Dataset, FileImages, Images
from pipeline.data.datasets.decode import FORMATS
from pipeline.data.datasets.image_files import remarks_on
from pipeline.data.datasets.validation import check_unkept
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
        except (OSError, TargetError) as error:
            self._append(path, f"cannot be listed ({getattr(error, 'strerror', None) or error})")
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


def named_files(names: Sequence[Path], *, videos: bool) -> NamedFiles:
    """What lies at `names`, each a file or a folder. Reads no file."""
    files = NamedFiles()
    for name in names:
        files.add(name, videos=videos)
    return files


def named_images(
    files: NamedFiles,
    rows: Sequence[int],
    classes: tuple[str, ...],
    depth_of_target: Callable[[], int | None],
) -> tuple[Dataset, dict[int, str], list[str]]:
    """The images among the `rows` of `files` that can be decoded, without labels, with their rows as ids; the
    rows that cannot be used, and why; and notes for the user.

    `depth_of_target` is called if there are 16-bit images: the depth at which the student read such images in
    training, None if it read none or that is not known. Then it is the least that holds all of them.
    """
    paths = np.array([os.fsencode(path) for path in files.paths], dtype=np.bytes_)
    facts = np.zeros(len(paths), dtype=FACTS)
    unusable = files.unusable_among(rows)
    sound = np.array([row for row in rows if row not in unusable], dtype=np.int64)
    unusable |= check_unkept(paths, facts, sound)
    depth, notes = _depth(facts, depth_of_target)
    for row in np.flatnonzero(facts["bits"] > depth):  # they would wrap around
        unusable[int(row)] = (
            f"its values use {facts['bits'][row]} bits, and the student was trained on {depth}-bit images"
        )
        facts["valid"][row] = False
    sound = np.flatnonzero(facts["valid"])
    paths, facts = paths[sound], facts[sound]
    notes += remarks_on(paths, facts, "the files given")
    depths = np.where(facts["bits"] > 0, depth, FULL).astype(np.uint8)
    access = FileImages(Path(), paths, np.ascontiguousarray(facts["transcode"]), depths)
    sizes, contents = np.ascontiguousarray(facts["size"]), np.ascontiguousarray(facts["content"])
    return unlabelled_dataset("files", classes, sound, sizes, access, contents), unusable, notes


def _depth(facts: Facts, depth_of_target: Callable[[], int | None]) -> tuple[int, list[str]]:
    """The depth at which 16-bit images are read, and a note on it; see `named_images`."""
    n, bits = int((facts["bits"] > 0).sum()), int(facts["bits"].max(initial=0))
    if not n:
        return FULL, []
    known = depth_of_target()
    depth = depth_of(bits) if known is None else known
    why = "the fewest bits that hold all of them" if known is None else "as in training"
    return depth, [f"{n:,} 16-bit images are read as {depth}-bit ones, {why}"]


def unlabelled_dataset(
    kind: Literal["files", "video"],
    classes: tuple[str, ...],
    ids: NDArray[np.int64],
    sizes: NDArray[np.int32],
    access: Images,
    contents: NDArray[np.uint8],
) -> Dataset:
    """A dataset of named files, for a student of `classes`; see `Dataset` for the arrays."""
    return Dataset(
        target="the files given",
        split="all",
        kind=kind,
        classes=classes,
        ids=ids,
        labels=np.full(len(ids), -1, dtype=np.int64),
        sizes=sizes,
        contents=contents,
        access=access,
    )
