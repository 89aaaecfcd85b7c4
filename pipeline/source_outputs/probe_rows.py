"""The rows that a probe is fitted on and answers about: stored logits or embeddings of several views, as
features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from cache import Store
from pipeline.data import Dataset, Positions
from pipeline.source_outputs.cached import all_classes
from sskt.probe import probe_features


@dataclass(frozen=True, slots=True, eq=False)
class StoredRows:
    """What the stores of a probe's sources say of a dataset, in their first `views` views."""

    stores: Mapping[str, Store]
    dataset: Dataset
    views: int
    temperature: float  # for which top-k stores are decoded

    def per_view(self, positions: Positions) -> Iterator[torch.Tensor]:
        """The features (see `probe_features`) of some samples: float64 (n, D) per view. Raises
        StoreIncomplete or StoreDamaged.
        """
        ids = self.dataset.ids[positions]
        rows = {name: store.positions_of(ids) for name, store in self.stores.items()}
        for view in range(self.views):
            stored = (
                (store, torch.from_numpy(store.rows(view, rows[name]).view(np.float16)))
                for name, store in self.stores.items()
            )
            yield probe_features(all_classes(store, logits, self.temperature) for store, logits in stored)

    def mean(self, positions: Positions) -> torch.Tensor:
        """The mean of their features over the views: float64 (n, D)."""
        per_view = self.per_view(positions)
        total = next(per_view)
        for features in per_view:
            total += features
        return total / self.views
