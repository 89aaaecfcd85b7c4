"""Stage two's batches: every sample once per epoch, in an order that does not depend on torch, prefetched.

Order, rank split and resume point are a pure function of (seed, epoch, step, rank); pixels come from any
renderer and stay on the device they were drawn on.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.datasets import Dataset, Positions
from pipeline.data.plan import PretextPlan
from pipeline.data.render import Renderer
from pipeline.runtime import InUse, World, prefetch, to_device

_AHEAD = 3  # batches


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's part of one step."""

    step: int  # within the epoch, from 0
    positions: Positions  # (n,) positions in the dataset
    pixels: torch.Tensor  # uint8 (n, 3, side, side), for videos (n, 3, D, side, side), on the device
    # int64 (n,), if multi-label int8 (n, C), of a pretext task its draws, int64 (n, K); on the device
    labels: torch.Tensor
    n_step: int  # samples of the step over all ranks


@dataclass(frozen=True, slots=True, eq=False)
class Sampler:
    """Which rank sees which sample when: `n` samples, at most `batch_size` per step over all ranks.

    Where some samples have no label, every step has its share of those that do, on every rank. With the share
    that they have of all samples, each is seen once per epoch; with another, they are repeated or left out.
    """

    n: int
    batch_size: int
    seed: int
    world: World
    labelled: Positions | None = None  # of the samples that have a label; None: all of them
    labelled_share: float | None = None  # of a step; None: that of all samples

    @property
    def n_steps(self) -> int:
        """Steps per epoch."""
        return -(-self.n // self.batch_size)

    @property
    def labelled_fraction(self) -> float:
        """Of the samples of an epoch, those that have a label."""
        return 1.0 if self.labelled is None else float(self.labelled_per_step().sum() / self.n)

    def steps(self, epoch: int) -> list[Positions]:
        """The positions in the dataset that this rank sees at each step."""
        if self.labelled is None:
            whole = shuffled_batches(self.n, self.batch_size, seed=self.seed, epoch=epoch)
            return [positions[self.world.part(len(positions))] for positions in whole]
        unlabelled = np.setdiff1d(np.arange(self.n), self.labelled)
        counts = self.labelled_per_step()
        sizes = [self.size_of(step) for step in range(self.n_steps)]
        parts = [
            np.split(_repeated(pool, total, seed=self.seed, epoch=epoch, stream=stream), ends[:-1])
            for stream, pool, total, ends in (
                (1, self.labelled, counts.sum(), counts.cumsum()),
                (2, unlabelled, sum(sizes) - counts.sum(), (sizes - counts).cumsum()),
            )
        ]
        return [
            np.concatenate([part[self.world.part(len(part))] for part in both])
            for both in zip(*parts, strict=True)
        ]

    def positions(self, epoch: int) -> Positions:
        """The positions in the dataset that this rank sees in an epoch, sorted."""
        if self.world.size == 1 and self.labelled is None:
            return np.arange(self.n)
        return np.unique(np.concatenate(self.steps(epoch)))

    def size_of(self, step: int) -> int:
        """Samples in a step over all ranks: `numpy.array_split` gives the extra ones to the first steps."""
        size, extra = divmod(self.n, self.n_steps)
        return size + (step < extra)

    def labelled_per_step(self) -> NDArray[np.int64]:
        """Samples with a label in each step, over all ranks: the share, rounded so that it holds in the long
        run, and at least one a rank.
        """
        assert self.labelled is not None  # noqa: S101 - the caller looked
        share = self.labelled_share or len(self.labelled) / self.n
        sizes = np.array([self.size_of(step) for step in range(self.n_steps)])
        counts = np.diff(np.rint(share * sizes.cumsum()), prepend=0).astype(np.int64)
        return np.clip(counts, self.world.size, sizes)


def sampler_for(
    dataset: Dataset, batch_size: int, seed: int, world: World, labelled_share: float | None
) -> Sampler:
    """The sampler of a training split."""
    labelled = dataset.labelled
    some = labelled if len(labelled) < len(dataset) else None
    return Sampler(len(dataset), batch_size, seed, world, some, labelled_share)


def shuffled_batches(n: int, batch_size: int, *, seed: int, epoch: int) -> list[Positions]:
    """Every position 0..n-1 once, in an order that is a function of (seed, epoch), in even batches.

    There are ceil(n / batch_size) batches whose sizes differ by at most one, so the last batch is never a
    handful of samples with noisy batch statistics.
    """
    order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(n)
    return np.array_split(order, -(-n // batch_size))


def _repeated(pool: Positions, total: int, *, seed: int, epoch: int, stream: int) -> Positions:
    """`total` samples of a pool, one shuffle after the other, each of which has every sample once."""
    key, n = [seed, epoch], max(1, len(pool))
    shuffles = [
        np.random.Generator(np.random.Philox(key=key, counter=[0, turn, stream, 1])).permutation(pool)
        for turn in range(-(-total // n))
    ]
    return np.concatenate(shuffles)[:total] if shuffles else pool[:0]


class Loader:
    """Draws the batches of one split for training."""

    def __init__(
        self,
        dataset: Dataset,
        renderer: Renderer,
        order: Sampler,
        device: torch.device,
        task: PretextPlan | None = None,
    ) -> None:
        """`task` is the plan of a pretext task, whose answers are the labels instead of the dataset's."""
        self._dataset, self._renderer, self._device, self._task = dataset, renderer, device, task
        self.order = order
        self._labels = torch.from_numpy(dataset.truth).to(device)

    def epoch(self, epoch: int, view: int, *, first_step: int = 0) -> Generator[Batch]:
        """Yield the batches of an epoch from `first_step` on; the generator may be closed early."""
        steps, in_use = self.order.steps(epoch)[first_step:], InUse(self._device)
        with closing(prefetch(self._drawn(view, steps), _AHEAD)) as drawn:
            try:
                for step, (positions, pixels, labels) in enumerate(drawn, start=first_step):
                    yield Batch(step, positions, pixels, labels, self.order.size_of(step))
                    in_use.hold(pixels)
            finally:
                in_use.release()

    def _labels_of(self, view: int, steps: list[Positions]) -> Iterator[torch.Tensor]:
        """The labels of every step, by one copy to the device for all."""
        if not steps:
            return
        sizes, positions = [len(each) for each in steps], np.concatenate(steps)
        if self._task is None:
            for at in torch.split(to_device(positions, self._device), sizes):
                yield self._labels[at]
            return
        answers = self._task.answers(view, self._dataset.ids[positions], self._dataset.sizes[positions])
        for part in torch.split(to_device(answers, self._device), sizes):
            yield part.clone()  # with a memory of its own, as compiled steps expect it

    def _drawn(
        self, view: int, steps: list[Positions]
    ) -> Generator[tuple[Positions, torch.Tensor, torch.Tensor]]:
        with closing(self._renderer.render(view, steps)) as drawn:
            labels = self._labels_of(view, steps)
            for positions, pixels, known in zip(steps, drawn, labels, strict=True):
                yield positions, to_device(pixels, self._device), known
