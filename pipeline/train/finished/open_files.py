"""The files that a finished run is asked about, as samples that its student sees like those of its target;
and any folder of class folders, whose classes are matched with the run's by name, to score the run on.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from pipeline.data import (
    Dataset,
    EncodedImages,
    NamedFiles,
    Packing,
    class_folders,
    load_named_images,
    load_named_videos,
    open_dataset,
    parse_target,
    recorded_packing,
)
from pipeline.runtime import Paths, mute_remarks
from pipeline.train.finished.student import FinishedRun, known_paths
from pipeline.train.whereabouts import whereabouts_of
from sskt.errors import RunError, SsktError, few, shown

log = logging.getLogger(__name__)
T = TypeVar("T")


class FileOpener:
    """Opens files as a run's own data are opened. How its 16-bit images are read and its videos are packed is
    looked up where the run's data are, or where `paths` and `target` say they are now.
    """

    def __init__(self, finished: FinishedRun, paths: Paths | None = None, target: str | None = None) -> None:
        self._finished, self._paths, self._target = finished, paths, target
        self.holds_videos = parse_target(finished.config.target).holds_videos

    @contextmanager
    def open(
        self, files: NamedFiles, rows: slice = slice(None)
    ) -> Iterator[tuple[Dataset, Mapping[int, str]]]:
        """The usable ones of the rows of `files` as samples without labels, whose ids are their rows, while
        the context is open; and the unusable ones, with the reason.
        """
        config = self._finished.config
        part = range(len(files.paths))[rows]
        if not self.holds_videos:
            dataset, unusable, notes = load_named_images(files, part, config.classes, self._depth)
            for note in notes:
                log.warning(note)
            yield self._as_learnt(dataset), unusable
            return
        with tempfile.TemporaryDirectory(prefix="sskt-") as folder:
            dataset, unusable = load_named_videos(files, part, config.classes, self._packing, Path(folder))
            yield self._as_learnt(dataset), unusable

    @cached_property
    def _packing(self) -> Packing:
        """How the videos that the run learnt from were packed."""

        def look(target: str, paths: Paths) -> Packing | None:
            return recorded_packing(parse_target(target), paths.data_dir, paths.index_dir)

        found = self._ask(look)
        if found is None:
            found = Packing()
            log.warning(
                f"{self._finished.folder}: it is not known how its videos were packed; a short side of "
                f"{found.short_px} px and JPEG quality {found.quality} are assumed, the defaults of sskt "
                f"prepare; say where they are now with --target and --cache-dir if that is wrong"
            )
        return found

    def _depth(self) -> int | None:
        """How many bits the 16-bit images had that the run learnt from; None if it had none."""

        def look(target: str, paths: Paths) -> int | None:
            with mute_remarks():
                found = (open_dataset(target, split, paths=paths).access for split in ("train", "test"))
                depths = (access.depth for access in found if isinstance(access, EncodedImages))
                return next((depth for depth in depths if depth is not None), None)

        return self._ask(look)

    def _ask(self, look: Callable[[str, Paths], T]) -> T | None:
        """What `look` finds at the run's target; None if the data are not there any more."""
        finished, paths = self._finished, known_paths(self._finished.folder, self._paths)
        if paths is None:
            return None
        if self._target is not None:  # what the user says has to be right
            where = whereabouts_of(finished.folder, finished.config, paths=paths, target=self._target)
            return look(where.target, where.paths)
        try:
            where = whereabouts_of(finished.folder, finished.config, paths=paths)
            return look(where.target, where.paths)
        except SsktError as error:
            log.warning(f"{finished.folder}: its own data cannot be looked at ({error})")
            return None

    def _as_learnt(self, dataset: Dataset) -> Dataset:
        """The dataset with as many labels per image as the student knows, none of them given."""
        if not self._finished.several:
            return dataset
        unknown = np.full((len(dataset), len(dataset.classes)), -1, dtype=np.int8)
        return replace(dataset, multi_hot=unknown)


@contextmanager
def open_class_folders(
    finished: FinishedRun, folder: Path, *, paths: Paths | None = None, target: str | None = None
) -> Iterator[tuple[Dataset, int]]:
    """The labelled samples in the class folders of `folder`, in the run's classes, and how many files cannot
    be used; those are logged, as are folders that are none of the run's classes, which are left out, and
    classes without a folder.

    `paths` and `target` as for `FileOpener`. Raises RunError if no class folder is one of the run's classes,
    or the run's samples have several labels.
    """
    config = finished.config
    if finished.several:
        raise RunError(
            f"{finished.folder}: its images have several labels, and class folders give each one; use "
            f"sskt predict for what the student says of them"
        )
    if not folder.is_dir():
        raise RunError(f"{shown(str(folder))}: no such folder; give one with a folder for each class")
    names = class_folders(folder)
    known = [name for name in names if name in config.classes]
    if not known:
        raise RunError(
            f"{shown(str(folder))}: {_found(names)}, expected folders named as the run's classes "
            f"({_some(config.classes)}); give the folder in which they lie"
        )
    opener, files, labels = FileOpener(finished, paths, target), NamedFiles(), list[int]()
    for name in known:
        files.add(folder / name, videos=opener.holds_videos)
        labels += [config.classes.index(name)] * (len(files.paths) - len(labels))
    _report_others(folder, [name for name in names if name not in known], opener.holds_videos)
    if missing := [name for name in config.classes if name not in known]:
        log.warning(
            f"{shown(str(folder))}: has no folder for {len(missing):,} of the run's {len(config.classes):,} "
            f"classes, which do not count: {_some(missing)}"
        )
    with opener.open(files) as (dataset, unusable):
        for row, reason in sorted(unusable.items()):
            log.warning(f"{shown(str(files.paths[row]))}: cannot be used: {shown(reason)}")
        if not len(dataset):
            raise RunError(f"{shown(str(folder))}: none of its {len(files.paths):,} files can be used")
        labelled = replace(dataset, target=str(folder), labels=np.array(labels, dtype=np.int64)[dataset.ids])
        yield labelled, len(unusable)


def _report_others(folder: Path, names: list[str], videos: bool) -> None:
    """Log which class folders are left out, and with how many files."""
    if not names:
        return
    others = NamedFiles()
    for name in names:
        others.add(folder / name, videos=videos)
    n = len(others.paths) - len(others.unusable)
    log.warning(
        f"{shown(str(folder))}: {len(names):,} folder(s) are none of the run's classes and are left out, "
        f"with their {n:,} {'videos' if videos else 'images'}: {_some(names)}"
    )


def _found(names: list[str]) -> str:
    return f"holds the folders {_some(names)}" if names else "holds no folder"


def _some(names: Sequence[str]) -> str:
    return few([shown(name) for name in names], most=10)
