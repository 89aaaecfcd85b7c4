"""Plans for images: shifts, resized crops, and the central view of evaluation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.data.plan.plan import (
    ALGORITHM,
    RESIZED,
    SHIFT,
    Draws,
    Flips,
    Ids,
    PlanRows,
    Sizes,
    Windows,
    below,
    draws_of,
    flips_of,
)
from sskt.errors import TargetError

_TRIES = 10  # random-resized-crop: attempts before the centre fallback, as in torchvision


@dataclass(frozen=True, slots=True)
class PadCropFlip:
    """Shift by up to `pad` pixels with black borders, then flip: CIFAR, STL10 (docs/method.md, section 2.6).

    The window has the image's own size; images that are not `side_px` wide are resized to it afterwards.
    """

    side_px: int
    seed: int = 0
    pad: int = 4
    flip: float = 0.5

    def rows(self, view: int, ids: Ids, sizes: Sizes) -> PlanRows:
        """See `Plan.rows`. Raises TargetError for a non-square image, which a resize would distort."""
        oblong = np.flatnonzero(sizes[:, 0] != sizes[:, 1])
        if len(oblong):
            height, width = sizes[oblong[0]]
            raise TargetError(
                f"sample {ids[oblong[0]]}: the picture is {height} x {width}, the pad-crop-flip plan expects "
                f"square ones; use --plan random-resized-crop-flip"
            )
        draws = draws_of(self.seed, ids, view, SHIFT)
        shifts = below(draws[:, :2], 2 * self.pad + 1) - self.pad
        windows = np.concatenate([shifts, sizes], axis=1).astype(np.int32)
        return PlanRows(ids, windows, flips_of(self.seed, ids, view, self.flip))

    def to_dict(self) -> dict[str, Any]:
        """See `Plan.to_dict`."""
        return {"kind": "pad-crop-flip", "algorithm": ALGORITHM, **asdict(self)}


@dataclass(frozen=True, slots=True)
class RandomResizedCropFlip:
    """A random area and aspect ratio, resized to `side_px`, then flip: the ImageNet recipe, as torchvision
    defines it.
    """

    side_px: int
    seed: int = 0
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def rows(self, view: int, ids: Ids, sizes: Sizes) -> PlanRows:
        """See `Plan.rows`."""
        windows = self._fallback(sizes)
        open_rows = np.arange(len(ids))
        for attempt in range(_TRIES):
            draws = draws_of(self.seed, ids[open_rows], view, RESIZED + attempt)
            candidates, fits = self._try(draws, sizes[open_rows])
            windows[open_rows[fits]] = candidates[fits]
            open_rows = open_rows[~fits]
            if not len(open_rows):
                break
        return PlanRows(ids, windows, flips_of(self.seed, ids, view, self.flip))

    def to_dict(self) -> dict[str, Any]:
        """See `Plan.to_dict`."""
        fields = {**asdict(self), "scale": list(self.scale), "ratio": list(self.ratio)}
        return {"kind": "random-resized-crop-flip", "algorithm": ALGORITHM, **fields}

    def _try(self, draws: Draws, sizes: Sizes) -> tuple[Windows, Flips]:
        """One attempt per row: windows (N, 4), and which of them lie inside their image (N,)."""
        unit = draws.astype(np.float64) / 2**32
        low, high = np.log(self.ratio)
        area = sizes.prod(axis=1, dtype=np.int64) * (
            self.scale[0] + unit[:, 0] * (self.scale[1] - self.scale[0])
        )
        aspect = np.exp(low + unit[:, 1] * (high - low))
        shape = np.rint(np.sqrt(np.stack([area / aspect, area * aspect], axis=1))).astype(np.int64)
        fits = ((shape > 0) & (shape <= sizes)).all(axis=1)
        room = np.maximum(sizes - shape, 0) + 1
        anchor = below(draws[:, 2:], room)
        return np.concatenate([anchor, shape], axis=1).astype(np.int32), fits

    def _fallback(self, sizes: Sizes) -> Windows:
        """The largest centred windows (N, 4) whose aspect ratio is allowed."""
        height, width = sizes.astype(np.float64).T
        shape = np.stack(
            [
                np.minimum(height, np.rint(width / self.ratio[0])),
                np.minimum(width, np.rint(height * self.ratio[1])),
            ],
            axis=1,
        ).astype(np.int64)
        return np.concatenate([(sizes - shape) // 2, shape], axis=1).astype(np.int32)


@dataclass(frozen=True, slots=True)
class Centre:
    """The evaluation view: the central square, `side_px` / `short_px` of the short side, resized to
    `side_px`.

    Resize(short_px) then CenterCrop(side_px), in one step; the same for every view.
    """

    side_px: int
    short_px: int

    def rows(self, view: int, ids: Ids, sizes: Sizes) -> PlanRows:  # noqa: ARG002
        """See `Plan.rows`."""
        crop = np.rint(sizes.min(axis=1) * (self.side_px / self.short_px)).astype(np.int32).clip(1)
        shape = np.stack([crop, crop], axis=1)
        windows = np.concatenate([(sizes - shape) // 2, shape], axis=1).astype(np.int32)
        return PlanRows(ids, windows, np.zeros(len(ids), dtype=np.bool_))

    def to_dict(self) -> dict[str, Any]:
        """See `Plan.to_dict`."""
        return {"kind": "centre", **asdict(self)}
