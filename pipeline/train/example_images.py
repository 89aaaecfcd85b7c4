"""Some samples as a student sees them."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np

from pipeline.data import Dataset, Pixels, Plan, Positions, open_renderer
from pipeline.runtime import Execution


def spread(dataset: Dataset, n: int) -> Positions:
    """At most `n` evenly spaced positions in a dataset."""
    return np.linspace(0, len(dataset) - 1, min(n, len(dataset))).round().astype(np.int64)


def example_images(dataset: Dataset, plan: Plan, positions: Positions, execution: Execution) -> Pixels:
    """View 0 of the samples at `positions`, of clips their middle frame: uint8 (n, side, side, 3), RGB."""
    n = len(positions)
    if not n:
        return np.empty((0, plan.side_px, plan.side_px, 3), dtype=np.uint8)
    how = replace(execution, renderer="torch")
    renderer = open_renderer(dataset.take(positions), plan, how, batch_size=n)
    with closing(renderer), closing(renderer.render(0, [np.arange(n)])) as drawn:
        images = next(drawn).cpu()
    if images.ndim == 5:
        images = images[:, :, images.shape[2] // 2]
    pixels: Pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    return pixels
