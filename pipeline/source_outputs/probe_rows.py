"""The rows that a probe is fitted on and answers about: stored logits or embeddings of several views, as
features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from cache import Store
from pipeline.data import Dataset, Positions
from pipeline.source_outputs.cached import all_classes
from sskt.probe import probe_features


def view_rows(
    stores: Mapping[str, Store],
    dataset: Dataset,
    positions: Positions,
    *,
    views: int,
    temperature: float,
) -> Iterator[torch.Tensor]:
    """Each sample's features (see `probe_features`) in the first `views` views: float64 (n, D) per view.

    `positions`: rows of the dataset. `temperature` is what top-k stores are decoded for. Raises
    StoreIncomplete or StoreDamaged.
    """
    rows = {name: store.positions_of(dataset.ids[positions]) for name, store in stores.items()}
    for view in range(views):
        stored = (
            (store, torch.from_numpy(store.rows(view, rows[name]).view(np.float16)))
            for name, store in stores.items()
        )
        yield probe_features(all_classes(store, logits, temperature) for store, logits in stored)


def mean_rows(
    stores: Mapping[str, Store],
    dataset: Dataset,
    positions: Positions,
    *,
    views: int,
    temperature: float,
) -> torch.Tensor:
    """The mean of `view_rows` over the views: float64 (n, D)."""
    per_view = view_rows(stores, dataset, positions, views=views, temperature=temperature)
    total = next(per_view)
    for features in per_view:
        total += features
    return total / views
