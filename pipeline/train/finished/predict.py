"""What a finished run's student says of files: the classes and their probabilities, seen in the very view in
which the run is scored.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from cache import Location
from pipeline.data import Dataset, list_named_files
from pipeline.runtime import Execution, Paths, choose_execution, coerce
from pipeline.train.evaluate import Evaluator, InsaneLogitsError
from pipeline.train.finished.open_files import FileOpener
from pipeline.train.finished.student import EVALUATION_CLIPS, known_paths, open_finished
from sskt.errors import RunError, shown

log = logging.getLogger(__name__)

_VIDEOS = 64  # packed at a time, which bounds the disk that they need
_PRESENT = 0.5  # of several labels per image, those at least this probable are said to be present


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """The answers to N files, in the order in which they were given.

    top: int64 (N,), the class with the largest score. probabilities: float32 (N, C), which sum to 1 unless
    the student knows several labels per image. Both are of rows that are not in `unusable`: row -> why.
    """

    classes: tuple[str, ...]
    several: bool  # labels per image
    files: tuple[Path, ...]
    top: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    unusable: Mapping[int, str]

    def rows(self) -> Iterator[dict[str, Any]]:
        """For each usable file: file, class, probability; with several labels per image also classes, those
        with a probability of at least 0.5; and probabilities by class name.
        """
        for row, file in enumerate(self.files):
            if row in self.unusable:
                continue
            shares = [float(f"{share:.7g}") for share in self.probabilities[row]]
            best = int(self.top[row])
            answer: dict[str, Any] = {
                "file": str(file),
                "class": self.classes[best],
                "probability": shares[best],
            }
            if self.several:
                pairs = zip(self.classes, shares, strict=True)
                answer["classes"] = [name for name, share in pairs if share >= _PRESENT]
            yield answer | {"probabilities": dict(zip(self.classes, shares, strict=True))}

    def errors(self) -> list[dict[str, str]]:
        """For each file without an answer: file and error."""
        return [{"file": str(self.files[row]), "error": why} for row, why in sorted(self.unusable.items())]


def predict(
    run: Location | str,
    files: Path | str | Sequence[Path | str],
    *,
    paths: Paths | None = None,
    target: str | None = None,
    execution: Execution | None = None,
    which: str = "last",
    clips: int | str = EVALUATION_CLIPS,
    backbone: nn.Module | None = None,
) -> Predictions:
    """What a run's student, "last" or "best", says of images or videos: files, and all that lie below
    folders.

    They are decoded, cropped, resized and normalised as the run's own test split is, so that the answers for
    that split are those that `evaluate` scores; a video's answer is the mean over `clips` clips, or "all".
    Files that cannot be read are in the result's `unusable`. `paths` and `target` say where the run's data
    are now, which matters for 16-bit images and for videos alone. Raises RunError if `run` is not a finished
    run, or a file's answer makes no sense.
    """
    finished, execution = open_finished(run, clips), execution or choose_execution()
    paths, opener = known_paths(finished.folder, paths), FileOpener(finished, paths, target)
    student = finished.student(which, coerce.backbone(backbone), execution, paths)
    named = list_named_files(coerce.paths(files, "files"), videos=opener.holds_videos)
    if not named.paths:
        raise RunError("there is no file to predict; name files or folders")
    for note in named.notes:
        log.warning(note)
    n, n_classes = len(named.paths), len(finished.config.classes)
    top, probabilities = np.full(n, -1, dtype=np.int64), np.full((n, n_classes), np.nan, dtype=np.float32)
    unusable: dict[int, str] = {}
    together = _VIDEOS if opener.holds_videos else n
    for start in range(0, n, together):
        with opener.open(named, slice(start, start + together)) as (dataset, bad):
            unusable |= bad
            if len(dataset):
                evaluator = Evaluator(dataset, finished.plan, execution, keeps=False)
                try:
                    scores, shares = evaluator.classify(student, finished.config.amp)
                except InsaneLogitsError as error:
                    raise RunError(_insane(error, dataset, named.paths)) from None
                top[dataset.ids], probabilities[dataset.ids] = scores.argmax(dim=1), shares
    return Predictions(
        finished.config.classes, finished.several, tuple(named.paths), top, probabilities, unusable
    )


def _insane(error: InsaneLogitsError, dataset: Dataset, paths: Sequence[Path]) -> str:
    return (
        f"{shown(str(paths[error.ids[0]]))}: {error} ({len(error.ids):,} of {len(dataset):,} files); the "
        f"student may have diverged, or these images are far from all that it has seen: leave them out, or "
        f"use another run"
    )
