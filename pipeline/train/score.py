"""Choose the best epoch, and score its student and the last one on the test split.

The split that chooses is evaluated during training. If that is not the test split, the test split is
evaluated once, at the end, for these two students.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from pipeline.runtime import Execution, World
from pipeline.train.config import TrainConfig
from pipeline.train.evaluate import Evaluator
from pipeline.train.run_folder import Run, read_student
from pipeline.train.summary import History, best_of, summary_of, summary_sentence
from sskt.students import Student

if TYPE_CHECKING:
    from pipeline.train.data import TrainingData


class Scorer:
    """Scores a student on the split that chooses and, at the end, on the test split. Every rank has one."""

    def __init__(
        self, config: TrainConfig, data: TrainingData, execution: Execution, world: World, run: Run | None
    ) -> None:
        """`run` is where the first rank finds the best student once `best` has been written."""
        self._config, self._world, self._run = config, world, run
        self._test = Evaluator(data.test_dataset, data.eval_plan, execution, world)
        self._chooser = self._test
        if data.val_dataset is not None:
            self._chooser = Evaluator(data.val_dataset, data.eval_plan, execution, world)
        self.best: dict[str, torch.Tensor] | None = None  # not yet written

    @property
    def largest(self) -> float:
        """The largest logit of the last evaluations, on either split."""
        return max(self._test.largest, self._chooser.largest)

    def look(self, student: Student, figures: dict[str, Any], history: History) -> dict[str, Any]:
        """An epoch's figures on the split that chooses, named after it (val_top1, val_loss). The student is
        kept as `best` if they are the best so far.
        """
        split = self._config.chosen_on
        if split is None:
            return {}
        found = self._chooser.accuracy(student, self._config.amp)
        found = {name.replace("test_", f"{split}_", 1): value for name, value in found.items()}
        now = {**figures, **found}
        if best_of(self._config, [*history, now]) is now:
            self.best = {name: value.detach().clone() for name, value in student.exported_state().items()}
        return found

    def test(self, student: Student, figures: dict[str, Any], history: History) -> dict[str, Any]:
        """Test figures of the last student and, as best_test_top1 and so on, of the best one; nothing if the
        test split chose.
        """
        if self._config.chosen_on == "test":
            return {}
        last = self._test.accuracy(student, self._config.amp)
        best = best_of(self._config, [*history, figures])
        if best is None:
            return last
        chosen = last if best is figures else self._of_best(student)
        return last | {f"best_{name}": value for name, value in chosen.items()}

    def summary(self, history: list[dict[str, Any]]) -> dict[str, Any]:
        """The content of summary.json."""
        return summary_of(self._config, history)

    def sentence(self, summary: dict[str, Any]) -> str:
        """What came out, in one line."""
        return summary_sentence(summary)

    def _of_best(self, student: Student) -> dict[str, float]:
        """Test figures of the best epoch's weights, which the student holds meanwhile."""
        best = self.best
        if best is None and self._run is not None:
            best = read_student(self._run.path, "best")
        best = self._world.broadcast(best and {name: value.cpu() for name, value in best.items()})
        own = student.exported_state()
        kept = {name: value.detach().clone() for name, value in own.items()}
        try:
            _copy(best, own)
            return self._test.accuracy(student, self._config.amp)
        finally:
            _copy(kept, own)


def _copy(source: Mapping[str, torch.Tensor], destination: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, value in destination.items():
            value.copy_(source[name])
