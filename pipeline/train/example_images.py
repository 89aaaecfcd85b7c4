"""A few training images as the student sees them, in a run's TensorBoard events: the plan's crops and flips at work."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np

from pipeline.data import PretextPlan, open_renderer
from pipeline.runtime import Execution
from pipeline.train.data import TrainingData
from pipeline.train.run_folder import Run

_N = 16


def log_examples(run: Run, data: TrainingData, execution: Execution) -> None:
    """Show view 0 of evenly spaced training samples, of clips their middle frame. A pretext task, which chooses
    frames of its own, has none.
    """
    if isinstance(data.plan, PretextPlan):
        return
    n = min(_N, len(data.dataset))
    positions = np.linspace(0, len(data.dataset) - 1, n).round().astype(np.int64)
    how = replace(execution, renderer="torch")
    renderer = open_renderer(data.dataset.take(positions), data.plan, how, batch_size=n)
    with closing(renderer), closing(renderer.render(0, [np.arange(n)])) as drawn:
        images = next(drawn)
    run.log_images("training images, view 0", images if images.ndim == 4 else images[:, :, images.shape[2] // 2])
