"""Carry out a plan's operations on images that a renderer has drawn, uint8, after crop and flip.

One implementation follows every renderer, so that all change the same pixels in the same way. It is
torchvision's own, one image at a time: a row depends neither on its neighbours nor on the number of threads.
Two operations are quicker here, to the same bytes (tests/test_pipeline_operations.py). What moves pixels is
done by torchvision once, to an image of positions, and then looked up. Sharpening blurs in whole numbers,
which a convolution in TF32 or bfloat16 would not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torchvision.transforms.v2 import functional as tvf

from pipeline.data.plan import OPERATIONS, RowOperations

_MAX_MAPS = 320  # of moved positions that are kept; trivialaugment has 305


def change_image(image: torch.Tensor, operations: RowOperations, row: int) -> torch.Tensor:
    """One row's operations on uint8 (3, side, side), which is left as it is."""
    for code, value in zip(operations.codes[row].tolist(), operations.values[row].tolist(), strict=True):
        image = apply(image, OPERATIONS[code], value)
    top, left, height, width = operations.boxes[row].tolist()
    if height and width:
        image = image.clone()
        image[:, top : top + height, left : left + width] = 0
    return image


def apply(image: torch.Tensor, name: str, value: float) -> torch.Tensor:
    """One operation of `OPERATIONS` on uint8 (3, side, side)."""
    if name in _MOVES:
        return _move(image, name, value)
    return _CHANGES[name](image, value) if name != "Identity" else image


_MOVES: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "ShearX": lambda x, value: _affine(x, shear=[math.degrees(math.atan(value)), 0.0], center=[0, 0]),
    "ShearY": lambda x, value: _affine(x, shear=[0.0, math.degrees(math.atan(value))], center=[0, 0]),
    "TranslateX": lambda x, value: _affine(x, translate=[int(value), 0]),
    "TranslateY": lambda x, value: _affine(x, translate=[0, int(value)]),
    "Rotate": lambda x, value: tvf.rotate(x, angle=value, interpolation=tvf.InterpolationMode.NEAREST),
}
_CHANGES: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "Brightness": lambda x, value: tvf.adjust_brightness(x, 1.0 + value),
    "Color": lambda x, value: tvf.adjust_saturation(x, 1.0 + value),
    "Contrast": lambda x, value: tvf.adjust_contrast(x, 1.0 + value),
    "Sharpness": lambda x, value: sharpen(x, 1.0 + value),
    "Posterize": lambda x, value: tvf.posterize(x, int(value)),
    "Solarize": lambda x, value: tvf.solarize(x, 255 * value),
    "AutoContrast": lambda x, _: tvf.autocontrast(x),
    "Equalize": lambda x, _: tvf.equalize(x),
    "brightness": tvf.adjust_brightness,
    "contrast": tvf.adjust_contrast,
    "saturation": tvf.adjust_saturation,
    "hue": tvf.adjust_hue,
}


def sharpen(image: torch.Tensor, factor: float) -> torch.Tensor:
    """Torchvision's adjust_sharpness of uint8 (3, H, W): away from, or towards, a blurred image whose weights
    are 5/13 and 1/13. Thirteenths are never halves, so rounding does not depend on how they are added up.
    """
    if min(image.shape[1:]) <= 2:
        return image
    sharpened = image.to(torch.float32)
    inner = sharpened[:, 1:-1, 1:-1]
    lines = sharpened[:, :-2] + sharpened[:, 1:-1] + sharpened[:, 2:]
    blurred = lines[:, :, :-2] + lines[:, :, 1:-1] + lines[:, :, 2:] + 4 * inner
    blurred.div_(13).round_()
    inner.add_(blurred.sub_(inner), alpha=1.0 - factor)
    return sharpened.clamp_(0, 255).to(torch.uint8)


def _affine(
    image: torch.Tensor,
    translate: Sequence[int] = (0, 0),
    shear: Sequence[float] = (0.0, 0.0),
    center: list[float] | None = None,
) -> torch.Tensor:
    moved: torch.Tensor = tvf.affine(
        image,
        angle=0.0,
        translate=list(translate),
        scale=1.0,
        shear=list(shear),
        interpolation=tvf.InterpolationMode.NEAREST,
        center=center,
    )
    return moved


def _move(image: torch.Tensor, name: str, value: float) -> torch.Tensor:
    """Where pixels come from is looked up; what comes from outside is black."""
    sources = _sources_of(name, value, image.shape[-1], image.device)
    framed = torch.nn.functional.pad(image.flatten(1), (1, 0))
    if image.device.type == "cpu":  # NumPy's is five times as fast
        moved = torch.from_numpy(np.take(framed.numpy(), sources.numpy(), axis=1))
    else:
        moved = framed.index_select(1, sources)
    return moved.view_as(image)


@lru_cache(_MAX_MAPS)
def _sources_of(name: str, value: float, side_px: int, device: torch.device) -> torch.Tensor:
    """For each pixel, row by row, 1 + the position that it comes from, 0 for outside: int32 (side^2,)."""
    line = torch.arange(side_px, dtype=torch.float32)
    positions = torch.stack(torch.meshgrid(line + 1, line, indexing="ij"))
    with torch.autocast("cpu", enabled=False):
        row, column = _MOVES[name](positions, value).to(torch.int32)
    return torch.where(row > 0, (row - 1) * side_px + column + 1, 0).flatten().to(device)
