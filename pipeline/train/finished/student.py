"""The student of a finished run, ready to answer as it did when it was scored."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from cache import Location
from pipeline.data import CentreClip, Plan, plan_from
from pipeline.runtime import Execution, Paths, coerce
from pipeline.train.backbone import reopen_backbone
from pipeline.train.config import TrainConfig
from pipeline.train.evaluate import of_clips
from pipeline.train.kernel_check import prepare_to_score
from pipeline.train.run_folder import read_config, read_student
from pipeline.train.whereabouts import paths_of
from sskt.errors import RunError
from sskt.students import Student, Wrappable, to_channels_last

EVALUATION_CLIPS = 10  # per video


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run and its settings; `plan` is the view in which it is scored."""

    folder: Location
    config: TrainConfig
    plan: Plan

    @property
    def several(self) -> bool:
        """Whether the student's classes are independent of each other: several labels per image."""
        return self.config.primary_loss == "bce"

    def bare_student(self, which: str, backbone: Wrappable | None) -> Student:
        """The exported student, "last" or "best", on the CPU, in eval mode, as any program would compute it.

        A run with a backbone of the caller's needs `backbone`, built as it was then. Raises RunError if the
        run has not finished.
        """
        if which == "best" and self.config.chosen_on is None:
            raise RunError(
                f"{self.folder}: was trained with --val-share 0, so it has no best epoch; take the last one's"
            )
        network = reopen_backbone(self.config, backbone, self.folder)
        student = Student(network, len(self.config.classes), {}, transfer_module=False)
        student.load_state_dict(read_student(self.folder, which))
        return student.eval()

    def student(
        self, which: str, backbone: Wrappable | None, execution: Execution, paths: Paths | None
    ) -> Student:
        """The exported student, computing as it did in training: the same last bits. See `bare_student`."""
        student = self.bare_student(which, backbone).to(execution.device)
        if self.config.channels_last:
            to_channels_last(student)
        kept_in: Location = self.folder / "kernels.json"  # of a run that was moved to another machine
        if paths is not None and paths.kernels_file.parent.is_dir():
            kept_in = paths.kernels_file
        prepare_to_score(student, self.config, self.plan, execution.device, kept_in)
        return student


def open_finished(run: Location | str, clips: int | str = EVALUATION_CLIPS) -> FinishedRun:
    """A run, which is scored in `clips` clips of each video, or "all". Raises RunError if it is none."""
    run = coerce.place(run, "run")
    where = str(run / "config.json")
    config = TrainConfig.from_dict(read_config(run), where)
    plan = plan_from(config.eval_plan, where)
    if isinstance(plan, CentreClip):
        plan = of_clips(plan, clips, config.student_frames)
    return FinishedRun(run, config, plan)


def known_paths(run: Location, paths: Paths | None) -> Paths | None:
    """`paths`, else where the run found its data and stores; None if that record is lost."""
    with suppress(RunError):
        return paths or paths_of(run)
    return None
