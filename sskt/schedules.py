"""Learning-rate schedules by name: drops at milestones (SSKT table 1), drops when a loss stops improving (its
video recipe), and half a cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, ReduceLROnPlateau

from sskt.errors import RunError

SCHEDULES = ("multistep", "plateau", "cosine")


class Schedule:
    """The learning-rate schedule of an optimiser, stepped once per epoch."""

    def __init__(
        self,
        optimiser: Optimizer,
        kind: str,
        *,
        epochs: int,
        milestones: Sequence[int],
        gamma: float,
        patience: int,
    ) -> None:
        """`kind`: "multistep", times `gamma` at each of `milestones`, in epochs; "plateau", times `gamma`
        after more than `patience` evaluations without a lower loss; "cosine", from the full rate to 0 over
        `epochs`. Departs from the released code: its plateau watches the sum of the primary and auxiliary
        losses on clips of the validation split; ours the primary loss on the evaluation views.
        """
        if kind not in SCHEDULES:
            raise RunError(f"schedule is {kind!r}, expected one of {', '.join(SCHEDULES)}")
        self._optimiser = optimiser
        self._torch: MultiStepLR | ReduceLROnPlateau | CosineAnnealingLR
        if kind == "multistep":
            self._torch = MultiStepLR(optimiser, list(milestones), gamma=gamma)
        elif kind == "plateau":
            self._torch = ReduceLROnPlateau(optimiser, mode="min", factor=gamma, patience=patience)
        else:
            self._torch = CosineAnnealingLR(optimiser, T_max=epochs, eta_min=0.0)

    @property
    def lr(self) -> float:
        """The current learning rate."""
        return float(self._optimiser.param_groups[0]["lr"])

    def step(self, test_loss: float | None) -> None:
        """End an epoch; `test_loss` is None if it was not evaluated, in which case a plateau does nothing."""
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
