"""Stage two by name: score the student of a finished run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from cache import CacheError, Location
from pipeline.data import Dataset, open_dataset, target_slug
from pipeline.runtime import Execution, Paths, choose_execution, coerce
from pipeline.train.confusion import write_confusion
from pipeline.train.evaluate import Evaluator
from pipeline.train.finished.open_files import open_class_folders
from pipeline.train.finished.student import EVALUATION_CLIPS, FinishedRun, known_paths, open_finished
from pipeline.train.splits import scoring_split
from pipeline.train.whereabouts import require_classes, require_contents, whereabouts_of
from sskt.errors import RunError
from sskt.students import Student, Wrappable

log = logging.getLogger(__name__)


def evaluate(
    run: Location | str,
    *,
    on: Path | str | None = None,
    paths: Paths | None = None,
    target: str | None = None,
    execution: Execution | None = None,
    which: str = "last",
    clips: int | str = EVALUATION_CLIPS,
    backbone: Wrappable | None = None,
) -> dict[str, Any]:
    """Score a run's exported student, "last" or "best", on its target's test split, in the run's evaluation
    view; for videos, in `clips` clips each, or "all", as in the released test script. Writes the confusion
    matrix into the run's folder.

    `on` is another folder to score it on, whose class folders are named as the run's classes; then n_unusable
    counts the files that cannot be read. The data are expected where they were (`paths_of`), in `paths`, or
    where `target` says, such as imagefolder:PATH. A run with a backbone of the caller's needs `backbone`,
    built as it was then. Raises RunError if `run` is not a finished run, its test split has other data or
    classes by now, or `on` has none of its classes.
    """
    backbone, execution = coerce.backbone(backbone), execution or choose_execution()
    finished = open_finished(run, clips)
    if on is None:
        dataset, student = open_to_score(
            finished, which=which, target=target, paths=paths, execution=execution, backbone=backbone
        )
        return _score(finished, student, dataset, execution, "confusion")
    on, paths = coerce.path(on, "on"), known_paths(finished.folder, paths)
    with open_class_folders(finished, on, paths=paths, target=target) as (dataset, n_unusable):
        student = finished.student(which, backbone, execution, paths)
        name = f"confusion-{target_slug(on.absolute().name)}"
        return _score(finished, student, dataset, execution, name) | {"n_unusable": n_unusable}


def open_to_score(
    finished: FinishedRun,
    *,
    which: str = "last",
    target: str | None = None,
    paths: Paths | None = None,
    execution: Execution,
    backbone: Wrappable | None = None,
) -> tuple[Dataset, Student]:
    """The split that scores a run, and its student; arguments and errors as in `evaluate`."""
    where = whereabouts_of(finished.folder, finished.config, paths=paths, target=target)
    dataset = _test_split(finished, where.target, where.paths)
    return dataset, finished.student(which, backbone, execution, where.paths)


def _test_split(finished: FinishedRun, target: str, paths: Paths) -> Dataset:
    """The split that scores a run. Raises RunError if its data or classes are others by now."""
    config = finished.config
    dataset = open_dataset(target, scoring_split(config, target, paths), paths=paths)
    require_classes(config, dataset.classes, finished.folder)
    now = {"test": dataset.content_sha256}
    require_contents(
        finished.folder, config.contents, now, target, "give the data whose test split scored it"
    )
    return dataset


def _score(
    finished: FinishedRun, student: Student, dataset: Dataset, execution: Execution, name: str
) -> dict[str, Any]:
    """A student's figures; its confusion matrix is written to files called `name`."""
    evaluator = Evaluator(dataset, finished.plan, execution)
    figures, confusion = evaluator.report(student, finished.config.amp)
    if confusion is not None:
        try:
            figures |= write_confusion(confusion, dataset.classes, finished.folder, name)
        except (CacheError, RunError) as error:  # a run in a read-only folder is scored all the same
            log.info(str(error))
    return figures
