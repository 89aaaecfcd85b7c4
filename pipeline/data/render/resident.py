"""The resident renderer: small images stay on the device as uint8, and a batch is one gather there.

For in-memory images whose windows keep their size (shifted and mirrored, as in the CIFAR recipes). It gives
the same bytes as the other two renderers, and is the fastest of the three.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.datasets import Dataset, Positions
from pipeline.data.plan import Centre, PadCropFlip, Plan
from pipeline.runtime import to_device


class ResidentRenderer:
    """See `pipeline.data.render.Renderer`. Pixels are created on the device, which holds all images."""

    def __init__(self, dataset: Dataset, plan: Plan, *, device: torch.device) -> None:
        self._dataset, self._plan, self._device = dataset, plan, device
        self.name = "resident-gpu" if device.type == "cuda" else "resident-cpu"
        self._border = _border(plan) or 0
        self._on_device: torch.Tensor | None = None  # uint8 (N, H, W, 3); None on a CPU

    def render(self, view: int, batches: Sequence[Positions]) -> Generator[torch.Tensor, None, None]:
        """See `Renderer.render`."""
        if not batches:
            return
        everything = np.concatenate(batches)
        rows = self._plan.rows(view, self._dataset.ids[everything], self._dataset.sizes[everything])
        corners = rows.windows[:, :2].astype(np.int64) + self._border
        ends = np.cumsum([len(positions) for positions in batches]).tolist()
        parts = [slice(end - len(each), end) for each, end in zip(batches, ends, strict=True)]
        if self._device.type == "cpu":
            for part in parts:
                images = self._dataset.images(everything[part])
                yield torch.from_numpy(slice_windows(images, corners[part], rows.flips[part], self._border))
            return
        # moved once per view, since every copy of a few hundred bytes takes as long as a batch's gather
        at, tops_lefts, flips = (
            to_device(values, self._device) for values in (everything, corners, rows.flips)
        )
        images_there = self._images_on_device()
        for part in parts:
            yield gather_windows(images_there[at[part]], tops_lefts[part], flips[part], self._border)

    @contextmanager
    def cache_decoded(self) -> Iterator[None]:
        """See `Renderer.cache_decoded`. These images are always in memory."""
        yield

    def close(self) -> None:
        """See `Renderer.close`."""
        self._on_device = None

    def _images_on_device(self) -> torch.Tensor:
        if self._on_device is None:
            everything = self._dataset.images(np.arange(len(self._dataset)))
            self._on_device = torch.from_numpy(everything).to(self._device)
        return self._on_device


def slice_windows(
    images: NDArray[np.uint8], corners: NDArray[np.int64], flips: NDArray[np.bool_], border: int
) -> NDArray[np.uint8]:
    """Cut windows from square images with a black border: (n, side, side, 3) to (n, 3, side, side).

    `corners` (n, 2) are each window's top and left in the bordered image; `flips` (n,) mirror it. One slice
    per image: on a CPU three times as fast as `gather_windows`, which has an index for every byte.
    """
    n, side = images.shape[:2]
    framed = np.zeros((n, 3, side + 2 * border, side + 2 * border), dtype=np.uint8)
    framed[:, :, border : border + side, border : border + side] = images.transpose(0, 3, 1, 2)
    drawn = np.empty((n, 3, side, side), dtype=np.uint8)
    for i, ((top, left), mirrored) in enumerate(zip(corners.tolist(), flips.tolist(), strict=True)):
        window = framed[i, :, top : top + side, left : left + side]
        drawn[i] = window[:, :, ::-1] if mirrored else window
    return drawn


def gather_windows(
    images: torch.Tensor, corners: torch.Tensor, flips: torch.Tensor, border: int
) -> torch.Tensor:
    """Like `slice_windows`, for tensors on any device, by one gather for the whole batch."""
    n, side = images.shape[:2]
    framed = images.new_zeros((n, 3, side + 2 * border, side + 2 * border))
    framed[:, :, border : border + side, border : border + side] = images.permute(0, 3, 1, 2)
    windows = framed.unfold(2, side, 1).unfold(3, side, 1)  # a strided view of every shift
    drawn = windows[torch.arange(n, device=images.device), :, corners[:, 0], corners[:, 1]]
    return torch.where(flips[:, None, None, None], drawn.flip(-1), drawn)


def can_be_resident(dataset: Dataset, plan: Plan, device: torch.device) -> bool:
    """Whether a view is just a gather, and the images fit in a quarter of the device's free memory."""
    if dataset.kind != "array" or _border(plan) is None or bool((dataset.sizes != plan.side_px).any()):
        return False
    if device.type == "cpu":  # they are in memory already
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return 3 * len(dataset) * plan.side_px**2 <= free // 4


def _border(plan: Plan) -> int | None:
    """How far windows extend beyond their images, in pixels; None if they differ in size from the images."""
    if isinstance(plan, PadCropFlip):
        return plan.pad
    return 0 if isinstance(plan, Centre) and plan.short_px == plan.side_px else None
