"""The files that a finished run is asked about, as samples that its student sees like those of its target."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
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
    load_named_images,
    load_named_videos,
    open_dataset,
    parse_target,
    recorded_packing,
)
from pipeline.runtime import Paths, mute_remarks
from pipeline.train.finished.student import FinishedRun, known_paths
from pipeline.train.whereabouts import whereabouts_of
from sskt.errors import SsktError

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
