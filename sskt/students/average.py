"""An exponential moving average of a student's weights over its training steps, which is what is scored and
kept where a run has one.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sskt.errors import RunError, SettingError
from sskt.students.student import Student


class AveragedStudent(AveragedModel):
    """The average of a student, itself a `Student` as `module`.

    After step n = 0, 1, ... it is d * average + (1 - d) * student with d = min(decay, (1 + n) / (10 + n)), at
    step 0 the student: while n is small, so is the share of the weights that training began with. The running
    mean and variance of batch norms are averaged in the same way, so that they belong to the averaged
    weights; counters are copied.
    """

    module: Student

    def __init__(self, student: Student, decay: float) -> None:
        """Raises RunError for a student that cannot be copied."""
        self._decay = decay
        try:
            super().__init__(student, multi_avg_fn=self._move, use_buffers=True)
        except Exception as error:
            raise RunError(
                f"--ema {decay:g} keeps a copy of the student, and this one cannot be copied "
                f"({str(error).splitlines()[0]}); use --ema 0"
            ) from error
        self.requires_grad_(requires_grad=False)

    def _move(self, averages: Sequence[Tensor], now: Sequence[Tensor], _n: Tensor | int) -> None:
        """Tensors of one type, after any step but the first."""
        if not averages[0].is_floating_point():
            for average, value in zip(averages, now, strict=True):
                average.copy_(value)
            return
        n = int(self.n_averaged)  # on the CPU, unlike `_n`: no waiting for a GPU
        move = get_ema_multi_avg_fn(min(self._decay, (1 + n) / (10 + n)))  # type: ignore[no-untyped-call]
        move(averages, now, n)


def require_decay(decay: float) -> None:
    """Raise RunError for a decay with which nothing would be averaged, or everything."""
    if not 0 <= decay < 1:
        raise SettingError(
            "ema", f"is {decay:g}, expected at least 0 and less than 1, such as 0.99; 0 keeps no average"
        )
