"""An exponential moving average of a student's weights over its training steps, which is what is scored and
kept where a run has one.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sskt.errors import RunError, SettingError
from sskt.students.student import Student

_LAG_OF_NORMS = 9.0  # steps by which a batch norm's own averages lag, of momentum 0.1: (1 - 0.1) / 0.1


class AveragedStudent(AveragedModel):
    """The average of a student, itself a `Student` as `module`.

    After step n = 0, 1, ... it is d * average + (1 - d) * student with d = min(decay, (1 + n) / (10 + n)), at
    step 0 the student: while n is small, so is the share of the weights that training began with.

    An average with decay d lags by d / (1 - d) steps. The running mean and variance of batch norms are
    averages already: they are averaged with the decay by which, both taken together, they lag as far as the
    weights that they belong to, and copied while weights lag less than they do (`matched`). In earlier runs
    they were averaged like the weights, and lagged further. Counters are copied.
    """

    module: Student

    def __init__(self, student: Student, decay: float, *, matched: bool = True) -> None:
        """Raises RunError for a student that cannot be copied."""
        self._decay, self._matched = decay, matched
        try:
            super().__init__(student, multi_avg_fn=self._move, use_buffers=not matched)
        except Exception as error:
            raise RunError(
                f"--ema {decay:g} keeps a copy of the student, and this one cannot be copied "
                f"({str(error).splitlines()[0]}); use --ema 0"
            ) from error
        self.requires_grad_(requires_grad=False)

    def update_parameters(self, model: nn.Module) -> None:
        """Take in the student after one more step."""
        decay = self._now()
        lag = max(0.0, decay / (1 - decay) - _LAG_OF_NORMS) if self._matched and self.n_averaged else 0.0
        before = [buffer.clone() for buffer in self._statistics()] if lag else []
        super().update_parameters(model)  # which copies buffers unless it averages them
        for average, earlier in zip(self._statistics(), before, strict=False):
            average.lerp_(earlier, lag / (1 + lag))

    def _now(self) -> float:
        """The decay of this step."""
        n = int(self.n_averaged)  # on the CPU: no waiting for a GPU
        return min(self._decay, (1 + n) / (10 + n))

    def _statistics(self) -> list[Tensor]:
        return [buffer for buffer in self.module.buffers() if buffer.is_floating_point()]

    def _move(self, averages: Sequence[Tensor], now: Sequence[Tensor], _n: Tensor | int) -> None:
        """Tensors of one type, after any step but the first."""
        if not averages[0].is_floating_point():
            for average, value in zip(averages, now, strict=True):
                average.copy_(value)
            return
        move = get_ema_multi_avg_fn(self._now())  # type: ignore[no-untyped-call]
        move(averages, now, _n)


def require_decay(decay: float) -> None:
    """Raise RunError for a decay with which nothing would be averaged, or everything."""
    if not 0 <= decay < 1:
        raise SettingError(
            "ema", f"is {decay:g}, expected at least 0 and less than 1, such as 0.99; 0 keeps no average"
        )
