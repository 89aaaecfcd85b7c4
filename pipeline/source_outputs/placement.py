"""Where a view's rows are held while an epoch uses them: on the device, in page-locked memory or on disk.

The first of these with room for two views is chosen, since the next view is loaded while one is in use. In
each of them a batch is one gather.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from cache import MappedView, Store, local_path
from pipeline.data import Positions
from pipeline.runtime import memory_for_images, to_device

_DEVICE_SHARE = 4  # source outputs may take a quarter of the free memory of a CUDA device


ReadRows = Callable[[Store, int, Positions], np.ndarray[Any, Any]]  # as `Store.rows`


class Table(Protocol):
    """Some rows of one view of a store."""

    def rows(self, at: Positions, there: torch.Tensor | None) -> torch.Tensor:
        """The table's rows at indices `at`, float16 (n, width), on the training device. `there`: as
        `Placement.indices` gives them.
        """


@dataclass(frozen=True, slots=True)
class Placement:
    """Where rows are held: `kind` is "device", "pinned" (the host's page-locked memory) or "map" (a memory
    map of verified files).
    """

    kind: str
    device: torch.device

    def place(self, store: Store, view: int, rows: Positions, read: ReadRows = Store.rows) -> Table:
        """Read the store rows `rows` of a view, verifying every byte, and put them here. Raises
        StoreIncomplete or StoreDamaged.
        """
        if self.kind == "map":
            return _Mapped(store.mapped(view, rows), rows, self.device)
        table = torch.from_numpy(read(store, view, rows).view(np.float16))
        if self.kind == "pinned":
            return _Pinned(table.pin_memory(), self.device)
        return _OnDevice(table.to(self.device))

    def indices(self, at: Positions) -> torch.Tensor | None:
        """Indices of rows, on the training device; None if rows are gathered on the host."""
        return to_device(at, self.device) if self.kind == "device" else None

    def __str__(self) -> str:
        where = {"device": f"on {self.device}", "pinned": "in page-locked memory", "map": "mapped from disk"}
        return "in memory" if (self.kind, self.device.type) == ("device", "cpu") else where[self.kind]


def choose_placement(stores: Mapping[str, Store], n_rows: int, device: torch.device) -> Placement:
    """The fastest placement with room for two views of `n_rows` samples of every store."""
    nbytes = 2 * n_rows * sum(2 * store.form.width for store in stores.values())
    if device.type == "cuda" and nbytes <= torch.cuda.mem_get_info(device)[0] // _DEVICE_SHARE:
        return Placement("device", device)
    local = all(local_path(store.path) for store in stores.values())
    if local and nbytes > memory_for_images():
        return Placement("map", device)
    return Placement("pinned" if device.type == "cuda" else "device", device)


@dataclass(frozen=True, slots=True, eq=False)
class _OnDevice:
    table: torch.Tensor

    def rows(self, at: Positions, there: torch.Tensor | None) -> torch.Tensor:  # noqa: ARG002
        """See `Table.rows`."""
        assert there is not None  # noqa: S101 - the placement is "device"
        return self.table[there]


@dataclass(frozen=True, slots=True, eq=False)
class _Pinned:
    table: torch.Tensor
    device: torch.device

    def rows(self, at: Positions, there: torch.Tensor | None) -> torch.Tensor:  # noqa: ARG002
        """See `Table.rows`. Gathers on the host, then copies while the device works."""
        batch = torch.empty((len(at), self.table.shape[1]), dtype=self.table.dtype, pin_memory=True)
        torch.index_select(self.table, 0, torch.from_numpy(at), out=batch)
        return batch.to(self.device, non_blocking=True)


@dataclass(frozen=True, slots=True, eq=False)
class _Mapped:
    view: MappedView
    store_rows: Positions
    device: torch.device

    def rows(self, at: Positions, there: torch.Tensor | None) -> torch.Tensor:  # noqa: ARG002
        """See `Table.rows`."""
        return to_device(self.view.rows(self.store_rows[at]).view(np.float16), self.device)
