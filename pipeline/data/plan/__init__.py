"""The augmentation plan: every random decision about an image or clip, made before any pixel is read
(docs/method.md, promise 1).

`plan.rows(view, ids, sizes)` is a pure function: the same (seed, plan, view, id, image size) gives the same
crop window, flip and frames whatever the order, batch size, rank, worker or start epoch. Epoch e of training
on V cached views uses view e mod V; truly random augmentation is the same plan with view = e.
"""

from __future__ import annotations

from typing import Any

from pipeline.data.plan.augmented import Augmented, geometry_of, pick_frames
from pipeline.data.plan.clips import CentreClip, CornerClip, EveryClip, PickedFrames, centre_frame
from pipeline.data.plan.images import Centre, PadCropFlip, RandomResizedCropFlip
from pipeline.data.plan.operations import OPERATIONS, POLICIES, RANDAUGMENT, Operations
from pipeline.data.plan.plan import ALGORITHM, Ids, Plan, PlanRows, RowOperations, Sizes, Windows
from pipeline.data.plan.pretext import (
    PRETEXT_PLANS,
    FramePair,
    FrameSequence,
    PretextPlan,
    SortedFrames,
    TrackedPatches,
)
from sskt.errors import TargetError

__all__ = [
    "OPERATIONS",
    "POLICIES",
    "PRETEXT_PLANS",
    "RANDAUGMENT",
    "Augmented",
    "Centre",
    "CentreClip",
    "ClipPlan",
    "CornerClip",
    "EveryClip",
    "FramePair",
    "FrameSequence",
    "Ids",
    "Operations",
    "PadCropFlip",
    "PickedFrames",
    "Plan",
    "PlanRows",
    "PretextPlan",
    "RandomResizedCropFlip",
    "RowOperations",
    "Sizes",
    "SortedFrames",
    "TrackedPatches",
    "Windows",
    "centre_frame",
    "geometry_of",
    "pick_frames",
    "plan_from",
]

ClipPlan = CornerClip | CentreClip | EveryClip | PickedFrames | PretextPlan
_KINDS = {
    "pad-crop-flip": PadCropFlip,
    "random-resized-crop-flip": RandomResizedCropFlip,
    "centre": Centre,
    "corner-clip": CornerClip,
    "centre-clip": CentreClip,
}


def plan_from(fields: dict[str, Any], where: str) -> Plan:
    """Rebuild the plan whose `to_dict` gave `fields`. Raises TargetError, prefixed by `where`, for an unknown
    kind or algorithm.
    """
    if "operations" in fields:
        geometry = {name: value for name, value in fields.items() if name != "operations"}
        changes = _arguments(fields["operations"])
        seed, algorithm = changes.pop("seed"), changes.pop("algorithm", None)
        if algorithm != ALGORITHM:
            raise TargetError(
                f"{where}: its operations are drawn by {algorithm}, expected {ALGORITHM}; use the version of "
                f"the program that made it"
            )
        return Augmented(plan_from(geometry, where), Operations(**changes), seed)
    arguments = _arguments(fields)
    kind, algorithm = arguments.pop("kind", None), arguments.pop("algorithm", ALGORITHM)
    if kind not in _KINDS or algorithm != ALGORITHM:
        raise TargetError(
            f"{where}: its plan is {kind} by {algorithm}, expected one of {', '.join(_KINDS)} by "
            f"{ALGORITHM}; use the version of the program that made it"
        )
    plan: Plan = _KINDS[kind](**arguments)
    return plan


def _arguments(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
