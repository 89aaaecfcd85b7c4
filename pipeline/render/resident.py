"""The resident renderer: small pictures lie on the device as uint8, a batch of a view is one gather there.

For pictures in memory whose windows keep their size (shifted and mirrored, as the CIFAR recipes do it). It
gives the same bytes as the other two renderers there, and is the fastest of the three.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from pipeline.device import moved
from pipeline.plan import Centre, PadCropFlip, Plan
from pipeline.render import Positions
from pipeline.targets.index import TargetIndex


class ResidentRenderer:
    """See `pipeline.render.Renderer`. Pixels are born on the device, where all pictures lie."""

    def __init__(self, index: TargetIndex, plan: Plan, *, device: torch.device) -> None:
        self._index, self._plan, self._device = index, plan, device
        self.name = "resident-gpu" if device.type == "cuda" else "resident-cpu"
        self._border = _border(plan) or 0
        self._on_device: torch.Tensor | None = (
            None  # uint8 (N, H, W, 3); in the host's memory the index has it
        )

    def render(self, view: int, batches: Sequence[Positions]) -> Generator[torch.Tensor, None, None]:
        """See `Renderer.render`."""
        side, border = self._plan.side_px, self._border
        for positions in batches:
            rows = self._plan.rows(view, self._index.ids[positions], self._index.sizes[positions])
            shifts = moved(rows.windows[:, :2].astype(np.int64), self._device) + border
            flips = moved(rows.flips, self._device)
            framed = torch.zeros(
                (len(positions), 3, side + 2 * border, side + 2 * border),
                dtype=torch.uint8,
                device=self._device,
            )
            inner = slice(border, border + side)
            framed[:, :, inner, inner] = self._pictures(positions).permute(0, 3, 1, 2)
            every = torch.arange(len(positions), device=self._device)
            windows = framed.unfold(2, side, 1).unfold(3, side, 1)  # a strided look at every shift
            drawn = windows[every, :, shifts[:, 0], shifts[:, 1]]
            yield torch.where(flips[:, None, None, None], drawn.flip(-1), drawn)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """See `Renderer.keeping`. They always are."""
        yield

    def close(self) -> None:
        """See `Renderer.close`."""
        self._on_device = None

    def _pictures(self, positions: Positions) -> torch.Tensor:
        """Whole pictures of a batch: uint8 (n, H, W, 3) on the device."""
        if self._device.type == "cpu":
            return torch.from_numpy(self._index.pictures(positions))
        if self._on_device is None:
            everything = self._index.pictures(np.arange(len(self._index)))
            self._on_device = torch.from_numpy(everything).to(self._device)
        return self._on_device[moved(positions, self._device)]


def can_be_resident(index: TargetIndex, plan: Plan, device: torch.device) -> bool:
    """Whether a view is no more than a gather, and the pictures fit in a quarter of the device's memory."""
    if index.kind != "array" or _border(plan) is None or bool((index.sizes != plan.side_px).any()):
        return False
    if device.type == "cpu":  # they are there already
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return 3 * len(index) * plan.side_px**2 <= free // 4


def _border(plan: Plan) -> int | None:
    """How far windows reach out of their pictures, where they have the pictures' size; else None."""
    if isinstance(plan, PadCropFlip):
        return plan.pad
    return 0 if isinstance(plan, Centre) and plan.short_px == plan.side_px else None
