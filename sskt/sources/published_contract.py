"""What is known of published weights, from torchvision's own record of how they were trained."""

from __future__ import annotations

from dataclasses import replace

import torchvision

from sskt.sources.contract import LOGITS, Contract
from sskt.students.torchvision_video import TORCH_VIDEO


def published_contract(
    task: str, architecture: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> Contract:
    """The contract of a task's weights for `architecture`, normalised by `mean` and `std` of pixels in 0..1.

    Size and interpolation are for the record, under `crop`: a source sees the student's pixels through f_s.
    """
    known = Contract(mean, std, (0.0, 1.0), "rgb", returns=LOGITS)
    of_video = architecture in TORCH_VIDEO
    if not of_video and task != "imagenet":
        return known
    name = "KINETICS400_V1" if of_video else "IMAGENET1K_V1"
    entry = getattr(torchvision.models.get_model_weights(architecture), name, None)
    if entry is None:
        return known
    made = entry.transforms()
    crop = f"resize {_sides(made.resize_size)}, crop {_sides(made.crop_size)}, {made.interpolation.value}"
    return replace(known, crop=crop, classes=tuple(entry.meta["categories"]))


def _sides(sizes: list[int]) -> str:
    return "x".join(map(str, dict.fromkeys(sizes)))
