"""The batches of stage two: every sample once an epoch, in an order of our own, drawn ahead of their use.

Order, rank split and resume point are a pure function of (seed, epoch, step, rank); pixels come from a
renderer, whichever it is, and stay on the device they were drawn on.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.data.datasets.dataset import Dataset
from pipeline.data.render import Positions, Renderer
from pipeline.runtime import InUse, World, prefetch, to_device

_AHEAD = 3  # batches


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's part of one step."""

    step: int  # of the epoch, from 0
    positions: Positions  # (n,) rows of the index
    pixels: torch.Tensor  # uint8 (n, 3, side, side), of videos (n, 3, D, side, side), on the device
    labels: torch.Tensor  # int64 (n,), of several labels int8 (n, C), on the device
    n_step: int  # samples of the step over all ranks


@dataclass(frozen=True, slots=True)
class Sampler:
    """Who sees which sample when. `n` samples, at most `batch_size` of them a step over all ranks."""

    n: int
    batch_size: int
    seed: int
    world: World

    @property
    def n_steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.n // self.batch_size)

    def steps(self, epoch: int) -> list[Positions]:
        """The positions in the dataset that this rank sees, step by step."""
        whole = shuffled_batches(self.n, self.batch_size, seed=self.seed, epoch=epoch)
        return [positions[self.world.part(len(positions))] for positions in whole]

    def positions(self, epoch: int) -> Positions:
        """The positions in the dataset that this rank sees in an epoch, sorted."""
        if self.world.size == 1:
            return np.arange(self.n)
        return np.sort(np.concatenate(self.steps(epoch)))

    def size_of(self, step: int) -> int:
        """Samples of a step over all ranks: `numpy.array_split` gives the first steps the extra ones."""
        size, extra = divmod(self.n, self.n_steps)
        return size + (step < extra)


def shuffled_batches(n: int, batch_size: int, *, seed: int, epoch: int) -> list[Positions]:
    """Every position 0..n-1 once, in an order that is a function of (seed, epoch), in even batches.

    There are ceil(n / batch_size) batches, whose sizes differ by at most one, so that the last is never a
    handful with batch statistics of its own.
    """
    order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(n)
    return np.array_split(order, -(-n // batch_size))


class Loader:
    """Draws the batches of one split for training."""

    def __init__(self, dataset: Dataset, renderer: Renderer, order: Sampler, device: torch.device) -> None:
        self._renderer, self._device = renderer, device
        self.order = order
        self._labels = torch.from_numpy(dataset.truth).to(device)

    def epoch(self, epoch: int, view: int, *, first_step: int = 0) -> Generator[Batch]:
        """The batches of an epoch from `first_step` on; leaving early is fine."""
        steps, in_use = self.order.steps(epoch)[first_step:], InUse(self._device)
        with closing(prefetch(self._drawn(view, steps), _AHEAD)) as drawn:
            try:
                for step, (positions, pixels) in enumerate(drawn, start=first_step):
                    labels = self._labels[to_device(positions, self._device)]
                    yield Batch(step, positions, pixels, labels, self.order.size_of(step))
                    in_use.hold(pixels)
            finally:
                in_use.release()

    def _drawn(self, view: int, steps: list[Positions]) -> Generator[tuple[Positions, torch.Tensor]]:
        with closing(self._renderer.render(view, steps)) as drawn:
            for positions, pixels in zip(steps, drawn, strict=True):
                yield positions, to_device(pixels, self._device)
