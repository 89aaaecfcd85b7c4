"""A plan whose images are changed after crop and flip, by `pipeline.data.plan.operations`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pipeline.data.plan.clips import CentreClip, CornerClip, PickedFrames
from pipeline.data.plan.operations import Operations
from pipeline.data.plan.plan import Ids, Plan, PlanRows, Sizes


@dataclass(frozen=True, slots=True)
class Augmented:
    """See `Plan`. Windows, flips and frames are those of `plan`; all frames of a clip are changed alike."""

    plan: Plan
    operations: Operations
    seed: int = 0

    @property
    def side_px(self) -> int:
        """See `Plan.side_px`."""
        return self.plan.side_px

    def rows(self, view: int, ids: Ids, sizes: Sizes) -> PlanRows:
        """See `Plan.rows`."""
        operations = self.operations.rows(self.seed, view, ids, self.side_px)
        return replace(self.plan.rows(view, ids, sizes), operations=operations)

    def to_dict(self) -> dict[str, Any]:
        """See `Plan.to_dict`."""
        return {**self.plan.to_dict(), "operations": {**self.operations.to_dict(), "seed": self.seed}}


def geometry_of(plan: Plan) -> Plan:
    """A plan's windows, flips and frames alone."""
    return plan.plan if isinstance(plan, Augmented) else plan


def pick_frames(plan: Plan, picks: tuple[int, ...]) -> Plan:
    """Selected frames of the clips of a plan, changed as the whole clips are."""
    if isinstance(plan, Augmented):
        return replace(plan, plan=pick_frames(plan.plan, picks))
    assert isinstance(plan, CornerClip | CentreClip)  # noqa: S101 - the caller looked
    return PickedFrames(plan, picks)
