"""What the metadata of an exported student say of it."""

from __future__ import annotations

import hashlib

from cache import read_file
from pipeline.data import Centre, CentreClip
from pipeline.train.finished.student import FinishedRun
from pipeline.train.run_folder import student_file
from sskt.sources import Contract


def about(finished: FinishedRun, which: str) -> dict[str, str]:
    """What other programs may want to know beside the contract."""
    found = {
        "model": finished.config.model,
        "probabilities": "sigmoid" if finished.several else "softmax",
        "weights_sha256": hashlib.sha256(read_file(student_file(finished.folder, which))).hexdigest(),
    }
    if isinstance(finished.plan, CentreClip):
        found["clip"] = f"{finished.plan.n_frames} frames, {finished.plan.stride} apart"
    return found


def contract_of(finished: FinishedRun) -> Contract:
    """What the file expects, and its classes."""
    plan, crop = finished.plan, "the central square of each frame, resized"
    if isinstance(plan, Centre):
        crop = f"the central square of {plan.side_px}/{plan.short_px} of the short side, resized"
    return Contract(
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        range=(0.0, 1.0),
        channels="rgb",
        interpolation="bilinear",
        size=plan.side_px,
        crop=crop,
        classes=finished.config.classes,
        returns="logits",
    )
