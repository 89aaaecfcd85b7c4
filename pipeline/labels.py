"""Where a batch's source logits come from: a store, or the live sources. The trainer cannot tell which
(DESIGN promise 6).

Both give one float16 tensor (N, K_m) per source on the training device, for the very pixels that the student
sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from cache.errors import StoreIncomplete
from cache.store import Store
from pipeline.targets.index import TargetIndex
from sskt.frozen import FrozenSource
from sskt.topk import decode


class Labels(Protocol):
    """Source logits by sample."""

    kind: str  # "cached" or "live"

    @property
    def n_classes(self) -> Mapping[str, int]:
        """Classes per source."""

    @property
    def views(self) -> int | None:
        """How many views take turns; None: every epoch draws its own."""

    def view_of(self, epoch: int) -> int:
        """The view that an epoch draws."""

    def load(self, view: int) -> None:
        """Make one view ready; called before the first batch of every epoch."""

    def logits(self, positions: NDArray[np.int64], pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Each source's logits (N, K_m), float16, for the index rows `positions` whose pixels are uint8 (N,
        3, H, W).
        """


class CachedLabels:
    """Logits read from stores: one view at a time in memory, one gather per batch."""

    kind = "cached"

    def __init__(
        self,
        stores: Mapping[str, Store],
        index: TargetIndex,
        *,
        views: int,
        device: torch.device,
        temperature: float,
    ) -> None:
        """`temperature` is the one that the labels are for: it decides what classes beyond the top k get.

        Raises StoreIncomplete if any of the views 0..views-1 is not finished in any store.
        """
        self._stores, self.views, self._device, self._temperature = stores, views, device, temperature
        self.n_classes = {name: store.n_classes for name, store in stores.items()}
        self._rows = {
            name: torch.from_numpy(store.positions_of(index.ids)).to(device) for name, store in stores.items()
        }
        self._view: dict[str, torch.Tensor] = {}
        self._loaded: int | None = None
        for name, store in stores.items():
            missing = store.pending(views) if views <= store.n_views else None
            if missing is None or missing:
                left = "only" if missing is None else f"{len(missing)} unfinished units in"
                raise StoreIncomplete(
                    f"{store.path}: {left} {store.n_views} views, this run needs {views} whole ones from "
                    f"{name}; run sskt precompute with --views {views} again, ask for fewer --views, or "
                    f"train with --labels live"
                )

    def view_of(self, epoch: int) -> int:
        """See `Labels.view_of`: e mod V."""
        return epoch % self.views

    def load(self, view: int) -> None:
        """See `Labels.load`. Reads and verifies the whole view of every store."""
        if view != self._loaded:
            self._view = {
                name: torch.from_numpy(store.view(view).view(np.float16)).to(self._device)
                for name, store in self._stores.items()
            }
            self._loaded = view

    def logits(self, positions: NDArray[np.int64], pixels: torch.Tensor) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """See `Labels.logits`."""
        picked = torch.from_numpy(positions).to(self._device)
        rows = {name: view[self._rows[name][picked]] for name, view in self._view.items()}
        return {name: self._all_classes(name, found) for name, found in rows.items()}

    def _all_classes(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """Stored rows as logits of every class."""
        if self._stores[name].top_k is None:
            return rows
        return decode(rows.view(torch.uint16), self.n_classes[name], self._temperature)


class LiveLabels:
    """Logits asked of the sources in every step: the price that a store saves.

    With `views` the plan repeats as it does for a store; without, every epoch draws a view of its own.
    """

    kind = "live"

    def __init__(self, sources: Mapping[str, FrozenSource], *, views: int | None) -> None:
        self._sources, self.views = sources, views
        self.n_classes = {name: frozen.source.spec.n_classes for name, frozen in sources.items()}

    def view_of(self, epoch: int) -> int:
        """See `Labels.view_of`."""
        return epoch if self.views is None else epoch % self.views

    def load(self, view: int) -> None:
        """See `Labels.load`. Nothing to do."""

    def logits(self, positions: NDArray[np.int64], pixels: torch.Tensor) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """See `Labels.logits`."""
        return {name: frozen.logits(pixels) for name, frozen in self._sources.items()}
