"""What a look at the sources knows: labels and folds of the samples, and each store's rows, read once."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache import Store
from pipeline.data import Dataset, subset
from pipeline.source_outputs import MOST_ROWS, StoredRows, all_classes, fitted_positions
from sskt.errors import RunError
from sskt.metrics import class_precisions
from sskt.probe import folds_of

_AT_ONCE = 8_192  # samples whose rows are being read


class Samples:
    """The labelled samples of a dataset, of very many some, and how answers about them are scored."""

    def __init__(self, dataset: Dataset) -> None:
        """Raises RunError for too few labels."""
        self.positions = fitted_positions(dataset)
        self.dataset, self.truth = dataset, dataset.truth[self.positions]
        self.labels = dataset.labels[self.positions]  # with several per image, the first
        self.n_classes = len(dataset.classes)
        self.several = self.truth.ndim == 2
        if len(self.positions) < 2 or (not self.several and len(np.unique(self.labels)) < 2):
            raise RunError(
                f"{dataset.target}: {len(self.positions)} of {len(dataset):,} training samples have a label, "
                f"of {len(np.unique(self.labels))} of {self.n_classes} classes; a probe needs at least two "
                f"labelled samples of each of at least two classes"
            )
        self.keys = subset.draws(dataset.ids[self.positions])
        self.folds = folds_of(self.truth, self.keys, dataset.classes)

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def n_folds(self) -> int:
        """K."""
        return int(self.folds.max()) + 1

    @property
    def metric(self) -> str:
        """What `score` is."""
        return "mAP" if self.several else "top-1"

    @cached_property
    def chance(self) -> float:
        """The score, in percent, of an answer that knows no image: always the most frequent class; for
        several labels per image, each class's share of the images.
        """
        if not self.several:
            return 100 * float(np.bincount(self.labels).max() / len(self))
        counted = np.maximum((self.truth >= 0).sum(axis=0), 1)
        shares = (self.truth == 1).sum(axis=0) / counted
        return 100 * float(shares[shares > 0].mean())

    def score(self, logits: NDArray[np.floating], rows: NDArray[np.int64]) -> float:
        """Top-1 or mAP, in percent, of logits (n, C) of the samples `rows`."""
        if not self.several:
            return 100 * float((logits.argmax(axis=1) == self.truth[rows]).mean())
        truth = self.truth[rows].astype(np.int8)
        shown = [ap for ap in class_precisions(logits.astype(np.float32), truth) if not math.isnan(ap)]
        return 100 * statistics.mean(shown) if shown else math.nan


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Features (see `sskt.probe.probe_features`) of n samples from V views to fit on, and their mean."""

    fitted: Tensor  # float32 (V, n, D): the first views, as many as a probe is fitted on
    mean: Tensor  # float32 (n, D): over all views
    views: int  # all of them


def read_rows(store: Store, name: str, samples: Samples, *, views: int, temperature: float) -> Rows:
    """The rows of one source's store. Raises StoreIncomplete or StoreDamaged."""
    n_fitted = max(1, min(views, MOST_ROWS // len(samples)))
    fitted = torch.empty((n_fitted, len(samples), store.n_classes))
    mean = torch.empty((len(samples), store.n_classes))
    stored = StoredRows({name: store}, samples.dataset, views, temperature)
    for start in range(0, len(samples), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        positions = samples.positions[part]
        total = torch.zeros((len(positions), store.n_classes), dtype=torch.float64)
        for view, rows in enumerate(stored.per_view(positions)):
            total += rows
            if view < n_fitted:
                fitted[view, part] = rows.float()
        mean[part] = (total / views).float()
    return Rows(fitted, mean, views)


def join(parts: list[Rows]) -> Rows:
    """The rows of several sources, side by side."""
    return Rows(
        torch.cat([part.fitted for part in parts], dim=2),
        torch.cat([part.mean for part in parts], dim=1),
        parts[0].views,
    )


def first_logits(store: Store, samples: Samples, temperature: float) -> NDArray[np.float16]:
    """A source's logits (n, K) of view 0."""
    at = store.positions_of(samples.dataset.ids[samples.positions])
    stored = torch.from_numpy(store.rows(0, at).view(np.float16))
    return all_classes(store, stored, temperature).numpy()
