"""The torch renderer: Pillow, torch and a thread pool; runs everywhere, as the DALI graph's slow twin."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from torchvision.transforms.v2 import functional as tvf

from pipeline.data.datasets import Dataset, Pixels, Positions
from pipeline.data.plan import Plan, PlanRows, Windows


class TorchRenderer:
    """See `pipeline.data.render.Renderer`. Pixels stay in CPU memory."""

    name = "torch-cpu"

    def __init__(self, dataset: Dataset, plan: Plan, *, threads: int) -> None:
        self._dataset, self._plan = dataset, plan
        self._pool = ThreadPoolExecutor(threads)
        self._decoded: dict[int, Pixels] | None = None  # position -> whole image
        self._whole_windows = dataset.kind == "array" and bool((dataset.sizes == plan.side_px).all())

    def render(self, view: int, batches: Sequence[Positions]) -> Generator[torch.Tensor, None, None]:
        """See `Renderer.render`."""
        for positions in batches:
            rows = self._plan.rows(view, self._dataset.ids[positions], self._dataset.sizes[positions])
            if self._whole_windows and bool((rows.windows[:, 2:] == self._plan.side_px).all()):
                yield _gather(self._dataset.images(positions), rows)
            else:
                jobs = zip(positions, rows.windows, rows.flips, strict=True)
                yield torch.stack(list(self._pool.map(self._draw, jobs)))

    @contextmanager
    def cache_decoded(self) -> Iterator[None]:
        """See `Renderer.cache_decoded`."""
        self._decoded = {} if self._dataset.kind == "files" else None
        try:
            yield
        finally:
            self._decoded = None

    def close(self) -> None:
        """See `Renderer.close`."""
        self._pool.shutdown()

    def _draw(self, job: tuple[np.int64, Windows, np.bool_]) -> torch.Tensor:
        """One image: uint8 (3, side, side)."""
        position, window, flip = job
        return fit_windows(crop(self._whole(int(position)), window)[None], self._plan.side_px, bool(flip))[0]

    def _whole(self, position: int) -> Pixels:
        """The uncropped image: uint8 (H, W, 3)."""
        if self._decoded is None:
            return self._dataset.pixels_of(position)
        if position not in self._decoded:
            self._decoded[position] = self._dataset.pixels_of(position)
        return self._decoded[position]


def fit_windows(windows: Pixels, side_px: int, flip: bool) -> torch.Tensor:
    """Resize windows (n, h, w, 3) as torchvision does, then flip: uint8 (n, 3, side, side)."""
    images = torch.from_numpy(windows).permute(0, 3, 1, 2)
    if images.shape[2:] != (side_px, side_px):
        images = tvf.resize(images, [side_px, side_px], tvf.InterpolationMode.BILINEAR, antialias=True)
    return images.flip(-1) if flip else images


def crop(image: Pixels, window: Windows) -> Pixels:
    """Cut the window (top, left, height, width) from an image (H, W, 3); black where it lies outside."""
    top, left, height, width = (int(v) for v in window)
    out = np.zeros((height, width, 3), dtype=np.uint8)
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + height, image.shape[0]), min(left + width, image.shape[1])
    if y0 < y1 and x0 < x1:
        out[y0 - top : y1 - top, x0 - left : x1 - left] = image[y0:y1, x0:x1]
    return out


def _gather(images: Pixels, rows: PlanRows) -> torch.Tensor:
    """Shift and mirror images of one size, all at once: uint8 (n, S, S, 3) to (n, 3, S, S)."""
    side = images.shape[1]
    grid = np.arange(side)
    y = rows.windows[:, 0, None] + grid
    x = rows.windows[:, 1, None] + np.where(rows.flips[:, None], grid[::-1], grid)
    inside = ((y >= 0) & (y < side))[:, :, None] & ((x >= 0) & (x < side))[:, None, :]
    picked = images[
        np.arange(len(images))[:, None, None],
        y.clip(0, side - 1)[:, :, None],
        x.clip(0, side - 1)[:, None, :],
    ]
    picked *= inside[..., None]
    return torch.from_numpy(picked).permute(0, 3, 1, 2).contiguous()
