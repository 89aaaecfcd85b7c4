"""The augmentation plan: every random decision about a picture or clip, made before any pixel is read
(docs/method.md, promise 1).

`plan.rows(view, ids, sizes)` is a pure function: the same (seed, plan, view, id, picture size) gives the same
crop window, flip and frames whatever the order, batch size, rank, worker or start epoch. Epoch e of training
on V cached views uses view e mod V; truly random augmentation is the same plan with view = e.
"""

from __future__ import annotations

from typing import Any

from pipeline.data.plan.clips import CentreClip, ClipPlan, CornerClip, EveryClip, OfClip
from pipeline.data.plan.images import Centre, PadCropFlip, RandomResizedCropFlip
from pipeline.data.plan.plan import ALGORITHM, Plan, PlanRows
from sskt.errors import TargetError

__all__ = [
    "Centre",
    "CentreClip",
    "ClipPlan",
    "CornerClip",
    "EveryClip",
    "OfClip",
    "PadCropFlip",
    "Plan",
    "PlanRows",
    "RandomResizedCropFlip",
    "plan_from",
]

_KINDS = {
    "pad-crop-flip": PadCropFlip,
    "random-resized-crop-flip": RandomResizedCropFlip,
    "centre": Centre,
    "corner-clip": CornerClip,
    "centre-clip": CentreClip,
}


def plan_from(fields: dict[str, Any], where: str) -> Plan:
    """The plan whose `to_dict` gave `fields`; TargetError, starting with `where`, if there is none."""
    own = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    kind, algorithm = own.pop("kind", None), own.pop("algorithm", ALGORITHM)
    if kind not in _KINDS or algorithm != ALGORITHM:
        raise TargetError(
            f"{where}: its plan is {kind} by {algorithm}, expected one of {', '.join(_KINDS)} by "
            f"{ALGORITHM}; use the version of the program that made it"
        )
    plan: Plan = _KINDS[kind](**own)
    return plan
