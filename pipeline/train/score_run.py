"""Stage two by name: score the student of a finished run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from pipeline.data import CentreClip, open_dataset, plan_from
from pipeline.runtime import Execution, Paths, choose_execution, coerce
from pipeline.train.backbone import reopen_backbone
from pipeline.train.config import TrainConfig
from pipeline.train.confusion import write_confusion
from pipeline.train.evaluate import Evaluator, of_clips
from pipeline.train.kernel_check import prepare_to_score
from pipeline.train.run_folder import read_config, read_student
from pipeline.train.splits import scoring_split
from pipeline.train.whereabouts import require_classes, require_contents, whereabouts_of
from sskt.errors import RunError
from sskt.students import Backbone, Student, to_channels_last

log = logging.getLogger(__name__)

EVALUATION_CLIPS = 10  # per video


def evaluate(
    run: Path | str,
    *,
    paths: Paths | None = None,
    target: str | None = None,
    execution: Execution | None = None,
    which: str = "last",
    clips: int | str = EVALUATION_CLIPS,
    backbone: Backbone | None = None,
) -> dict[str, Any]:
    """Score a run's exported student, "last" or "best", on its target's test split, in the run's evaluation
    view; for videos, in `clips` clips each, or "all", as in the released test script. Writes the confusion
    matrix into the run's folder.

    The data are expected where they were (`paths_of`), in `paths`, or where `target` says, such as
    imagefolder:PATH. A run with a backbone of the caller's needs `backbone`, built as it was then. Raises
    RunError if `run` is not a finished run, or its test split has other data or classes by now.
    """
    run, backbone = coerce.path(run, "run"), coerce.backbone(backbone)
    config = TrainConfig.from_dict(read_config(run), str(run / "config.json"))
    where = whereabouts_of(run, config, paths=paths, target=target)
    paths, execution = where.paths, execution or choose_execution()
    if which == "best" and config.chosen_on is None:
        raise RunError(
            f"{run}: was trained with --val-share 0, so it has no best epoch; score the last one's"
        )
    dataset = open_dataset(where.target, scoring_split(config, where.target, paths), paths=paths)
    require_classes(config, dataset.classes, run)
    now = {"test": dataset.content_sha256}
    require_contents(run, config.contents, now, where.target, "give the data whose test split scored it")
    network = reopen_backbone(config, backbone, run)
    student = Student(network, len(config.classes), {}, transfer_module=False)
    student.load_state_dict(read_student(run, which))
    student.to(execution.device)
    if config.channels_last:  # the same last bits as in training
        to_channels_last(student)
    plan = plan_from(config.eval_plan, str(run / "config.json"))
    if isinstance(plan, CentreClip):
        plan = of_clips(plan, clips, config.student_frames)
    prepare_to_score(student, config, plan, execution.device, paths.kernels_file)
    figures, confusion = Evaluator(dataset, plan, execution).report(student, config.amp)
    if confusion is not None:
        try:
            figures |= write_confusion(confusion, dataset.classes, run)
        except RunError as error:  # a run in a read-only folder is scored all the same
            log.info(str(error))
    return figures
