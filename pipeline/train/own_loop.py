"""Pixels and source logits, batch by batch, for your own training loop."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import torch

from pipeline.data import NO_POOL, Augmentation, Dataset, Loader, open_renderer, sampler_for
from pipeline.runtime import Execution, Paths, World, choose_execution, coerce
from pipeline.source_outputs import SourceOutputs
from pipeline.train.data import open_data
from pipeline.train.resolve import resolve
from sskt.recipes import recipe_for


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """n samples on the training device."""

    ids: torch.Tensor  # int64 (n,), on the host
    pixels: torch.Tensor  # uint8 (n, 3, side, side), RGB; of videos (n, 3, D, side, side)
    labels: torch.Tensor  # int64 (n,), -1 for unlabelled samples
    # of each source, for these very pixels: float16 (n, K); maps (n, C, g, g)
    logits: dict[str, torch.Tensor]


class OwnLoopData:
    """A target's training split with its source logits; see `open_training_data`."""

    def __init__(
        self, dataset: Dataset, outputs: SourceOutputs, loader: Loader, device: torch.device
    ) -> None:
        self._dataset, self._outputs, self._loader = dataset, outputs, loader
        self.device = device  # where pixels, labels and logits are

    @property
    def classes(self) -> tuple[str, ...]:
        """The target's class names, in label order."""
        return self._dataset.classes

    @property
    def source_classes(self) -> dict[str, int]:
        """K of each source."""
        return dict(self._outputs.n_classes)

    def __len__(self) -> int:
        """Batches per epoch."""
        return self._loader.order.n_steps

    def epoch(self, epoch: int) -> Generator[TrainingBatch]:
        """Every sample once, in a different order in each epoch; epoch e shows view e mod V.

        Under torchrun, this rank's part of every batch. The next epoch's logits are read in the background.
        """
        outputs, sampler = self._outputs, self._loader.order
        view = self._view_of(epoch)
        outputs.load(view, sampler.positions(epoch))
        outputs.prepare(self._view_of(epoch + 1), sampler.positions(epoch + 1))
        for batch in self._loader.epoch(epoch, view):
            ids = torch.from_numpy(self._dataset.ids[batch.positions])
            yield TrainingBatch(
                ids, batch.pixels, batch.labels, outputs.logits(batch.positions, batch.pixels)
            )
        outputs.finish()

    def _view_of(self, epoch: int) -> int:
        views = self._outputs.views
        return epoch if views is None else epoch % views


def open_training_data(
    target: str,
    *,
    sources: str | Sequence[str] = (),
    labels: str = "auto",
    views: int | None = None,
    batch_size: int = 128,
    seed: int = 0,
    temperature: float | None = None,
    augmentation: Augmentation | None = None,
    paths: Paths | None = None,
    execution: Execution | None = None,
    limit: int | None = None,
    unlabelled: str | Sequence[str] = NO_POOL,
    labelled_share: float | None = None,
) -> OwnLoopData:
    """Open a target with its sources' stores, checked as `sskt train` checks them.

    Default `sources`: every source with a whole view stored. `temperature` is that at which you will soften
    the logits, which only matters for top-k stores (default: the recipe's). `unlabelled` names pools of
    unlabelled samples, like `--unlabelled` of `sskt train`; () means those in a user's own folder.
    `labelled_share` is the labelled fraction of a batch (default: as in all samples).
    """
    paths = (paths or Paths()).fetched(coerce.texts(sources, "sources"))
    execution = execution or choose_execution()
    target, limit, seed = (
        coerce.text(target, "target"),
        coerce.whole_or_none(limit, "limit"),
        coerce.seed(seed),
    )
    batch_size = coerce.whole(batch_size, "batch_size", low=1)
    world = World.from_environment()
    config = resolve(
        target,
        execution=execution,
        world=world,
        augmentation=augmentation or Augmentation(),
        model=recipe_for(target).models[0],
        limit=limit,
        sources=sources,
        labels=labels,
        views=views,
        amp="fp32",
        temperature=temperature,
        unlabelled=unlabelled,
    )
    # live sources are estimated for one epoch; no training samples are held out to choose an epoch
    config = replace(config, epochs=1, batch_size=batch_size, chosen_on="test")
    data = open_data(config, paths=paths, execution=execution, world=world)
    assert data.source_outputs is not None  # noqa: S101 - "sskt" has sources
    part = -(-batch_size // world.size)
    renderer = open_renderer(data.dataset, data.plan, execution, batch_size=part)
    sampler = sampler_for(data.dataset, batch_size, seed, world, labelled_share)
    loader = Loader(data.dataset, renderer, sampler, execution.device)
    return OwnLoopData(data.dataset, data.source_outputs, loader, execution.device)
