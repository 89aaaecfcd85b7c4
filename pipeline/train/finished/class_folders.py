"""Any folder of class folders, whose classes are matched with a run's by name, to score the run on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.data import Dataset, NamedFiles, class_folders
from pipeline.runtime import Paths
from pipeline.train.finished.open_files import FileOpener
from pipeline.train.finished.student import FinishedRun
from sskt.errors import RunError, shown

log = logging.getLogger(__name__)

_NAMED = 10  # classes or files in a sentence


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
            f"({_first(config.classes)}); give the folder in which they lie"
        )
    opener, files, labels = FileOpener(finished, paths, target), NamedFiles(), list[int]()
    for name in known:
        files.add(folder / name, videos=opener.holds_videos)
        labels += [config.classes.index(name)] * (len(files.paths) - len(labels))
    _report_others(folder, [name for name in names if name not in known], opener.holds_videos)
    if missing := [name for name in config.classes if name not in known]:
        log.warning(
            f"{shown(str(folder))}: has no folder for {len(missing):,} of the run's {len(config.classes):,} "
            f"classes, which do not count: {_first(missing)}"
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
        f"with their {n:,} {'videos' if videos else 'images'}: {_first(names)}"
    )


def _found(names: list[str]) -> str:
    return f"holds the folders {_first(names)}" if names else "holds no folder"


def _first(names: list[str] | tuple[str, ...]) -> str:
    """The first few of many names, and how many more there are."""
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(map(shown, names[:_NAMED])) + more
