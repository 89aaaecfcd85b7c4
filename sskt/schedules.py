"""Learning-rate schedules by name: drops at milestones (SSKT table 1), drops when a loss stops improving (its
video recipe), half a cosine, and two that move at every step: a trapezoid, and a cosine with a warm-up.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, MultiStepLR, ReduceLROnPlateau

from sskt.errors import RunError, SettingError

SCHEDULES = ("multistep", "plateau", "cosine", "trapezoid", "warm-cosine")


class Schedule:
    """The learning-rate schedule of an optimiser: told of every step's end and of every epoch's."""

    def __init__(
        self,
        optimiser: Optimizer,
        kind: str,
        *,
        epochs: int,
        milestones: Sequence[int],
        gamma: float,
        patience: int,
        steps: int = 0,
        warm_up: float = 0.2,
        cool_down: float = 0.8,
    ) -> None:
        """`kind`: "multistep", times `gamma` at each of `milestones`, in epochs; "plateau", times `gamma`
        after more than `patience` evaluations without a lower loss; "cosine", from the full rate to 0 over
        `epochs`; "trapezoid" and "warm-cosine", see `trapezoid` and `warm_cosine`, over all `steps` of a run.
        Departs from the released code: its plateau watches the sum of the primary and auxiliary losses on
        clips of the validation split; ours the primary loss on the evaluation views.
        """
        if kind not in SCHEDULES:
            raise SettingError("schedule", f"is {kind!r}, expected one of {', '.join(SCHEDULES)}")
        self._optimiser = optimiser
        self._torch: MultiStepLR | ReduceLROnPlateau | CosineAnnealingLR | LambdaLR
        if kind == "multistep":
            self._torch = MultiStepLR(optimiser, list(milestones), gamma=gamma)
        elif kind == "plateau":
            self._torch = ReduceLROnPlateau(optimiser, mode="min", factor=gamma, patience=patience)
        elif kind == "cosine":
            self._torch = CosineAnnealingLR(optimiser, T_max=epochs, eta_min=0.0)
        elif kind == "trapezoid":
            self._torch = LambdaLR(optimiser, trapezoid(steps, warm_up, cool_down))
        else:
            self._torch = LambdaLR(optimiser, warm_cosine(steps, warm_up))

    @property
    def lr(self) -> float:
        """The current learning rate."""
        return float(self._optimiser.param_groups[0]["lr"])

    def end_step(self) -> None:
        """Move a schedule that moves at every step."""
        if not isinstance(self._torch, LambdaLR):
            return
        if self._torch.last_epoch > 0:
            self._torch.step()
            return
        with (
            warnings.catch_warnings()
        ):  # fp16's scaler skips the optimiser's first steps, which torch reports
            warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler\.step\(\)`")
            self._torch.step()

    def end_epoch(self, test_loss: float | None) -> None:
        """Move any other schedule; `test_loss` is None if it was not evaluated, in which case a plateau does
        nothing.
        """
        if isinstance(self._torch, LambdaLR):
            return
        if not isinstance(self._torch, ReduceLROnPlateau):
            self._torch.step()
        elif test_loss is not None:
            self._torch.step(test_loss)

    def state_dict(self) -> dict[str, Any]:
        """Plain data for `load_state_dict`."""
        return dict(self._torch.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`; the rate itself is in the optimiser's state."""
        self._torch.load_state_dict(state)


def trapezoid(steps: int, warm_up: float, cool_down: float) -> Callable[[int], float]:
    """The factor on the learning rate of step 0, 1, ... of `steps`: a line from 0 to 1 over the first
    `warm_up` of the steps, 1, and a line to 0 over the last `cool_down` of them (fractions; together 1: a
    triangle, one cycle). No step has a rate of 0; what follows the last one has.
    """
    rising, falling = max(1.0, warm_up * steps), max(1.0, cool_down * steps)

    def factor(step: int) -> float:
        return max(0.0, min(1.0, (step + 1) / rising, (steps - step) / falling))

    return factor


def warm_cosine(steps: int, warm_up: float) -> Callable[[int], float]:
    """The factor on the learning rate of step 0, 1, ... of `steps`: a line from 0 to 1 over the first
    `warm_up` of the steps, a fraction, then half a cosine from 1 to 0. No step has a rate of 0; what follows
    the last one has.
    """
    rising = max(1.0, warm_up * steps)

    def factor(step: int) -> float:
        if step + 1 < rising:
            return (step + 1) / rising
        gone = (step + 1 - rising) / max(1.0, steps + 1 - rising)
        return (1 + math.cos(math.pi * min(1.0, gone))) / 2

    return factor


def require_trapezoid(warm_up: float, cool_down: float) -> None:
    """Raise RunError for fractions that overlap."""
    if warm_up + cool_down > 1 + 1e-9:  # 0.7 and 0.3 may be a bit more
        raise RunError(
            f"--warm-up {warm_up:g} and --cool-down {cool_down:g} are fractions of all steps, which come to "
            f"more than 1; lower one of them"
        )
