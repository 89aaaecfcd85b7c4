"""Where the rows of a view lie while an epoch uses them: on the device, in page-locked memory or on the disk.

The first that has room for two views, as the next is loaded while one is in use. From each of them a batch is
one gather.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from cache import MappedView, Store, local_path
from pipeline.runtime import memory_for_images, to_device

_OF_DEVICE = 4  # labels may take a quarter of what is free on a CUDA device


class Table(Protocol):
    """Some rows of a view of one store."""

    def rows(self, at: NDArray[np.int64]) -> torch.Tensor:
        """The rows at these places, float16 (n, width), on the training device."""


@dataclass(frozen=True, slots=True)
class Placement:
    """`kind`: "device", "pinned" (the host's page-locked memory) or "map" (a memory map of checked files)."""

    kind: str
    device: torch.device

    def of(self, store: Store, view: int, rows: NDArray[np.int64]) -> Table:
        """The rows `rows` of a view, every byte checked. Raises StoreIncomplete or StoreDamaged."""
        if self.kind == "map":
            return _Mapped(store.mapped(view, rows), rows, self.device)
        table = torch.from_numpy(store.rows(view, rows).view(np.float16))
        if self.kind == "pinned":
            return _Pinned(table.pin_memory(), self.device)
        return _OnDevice(table.to(self.device))

    def __str__(self) -> str:
        where = {"device": f"on {self.device}", "pinned": "in page-locked memory", "map": "mapped from disk"}
        return "in memory" if (self.kind, self.device.type) == ("device", "cpu") else where[self.kind]


def choose_placement(stores: Mapping[str, Store], n_rows: int, device: torch.device) -> Placement:
    """The fastest place with room for two views of `n_rows` samples of every store."""
    nbytes = 2 * n_rows * sum(2 * store.form.width for store in stores.values())
    if device.type == "cuda" and nbytes <= torch.cuda.mem_get_info(device)[0] // _OF_DEVICE:
        return Placement("device", device)
    local = all(local_path(store.path) for store in stores.values())
    if local and nbytes > memory_for_images():
        return Placement("map", device)
    return Placement("pinned" if device.type == "cuda" else "device", device)


@dataclass(frozen=True, slots=True, eq=False)
class _OnDevice:
    table: torch.Tensor

    def rows(self, at: NDArray[np.int64]) -> torch.Tensor:
        """See `Table.rows`."""
        return self.table[to_device(at, self.table.device)]


@dataclass(frozen=True, slots=True, eq=False)
class _Pinned:
    table: torch.Tensor
    device: torch.device

    def rows(self, at: NDArray[np.int64]) -> torch.Tensor:
        """See `Table.rows`. Gathered by the host, then copied while the device works."""
        found = torch.empty((len(at), self.table.shape[1]), dtype=self.table.dtype, pin_memory=True)
        torch.index_select(self.table, 0, torch.from_numpy(at), out=found)
        return found.to(self.device, non_blocking=True)


@dataclass(frozen=True, slots=True, eq=False)
class _Mapped:
    view: MappedView
    wanted: NDArray[np.int64]
    device: torch.device

    def rows(self, at: NDArray[np.int64]) -> torch.Tensor:
        """See `Table.rows`."""
        return to_device(self.view.rows(self.wanted[at]).view(np.float16), self.device)
