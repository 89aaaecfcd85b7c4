"""Ranks that share the reading of a view: each reads its part of the units and sends others their rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from cache import CacheError, Store
from pipeline.data import Positions
from pipeline.runtime import World


class SharedReading:
    """Reads rows together with all other ranks, which must make the same calls in the same order."""

    def __init__(self, world: World) -> None:
        """Rows are sent on the host, by a group of their own: they are read in a thread beside training."""
        self._world = world
        self._group: dist.ProcessGroup = dist.new_group(backend="gloo")  # type: ignore[assignment]

    def rows(self, store: Store, view: int, rows: Positions) -> NDArray[np.float16] | NDArray[np.uint16]:
        """What `store.rows` gives this rank. Raises, on every rank, what one rank's reading raised."""
        reader = rows // store.block_rows % self._world.size
        order = np.argsort(reader, kind="stable")
        asks = np.bincount(reader, minlength=self._world.size)
        asked = self._send(asks, np.ones(self._world.size, dtype=np.int64))  # of me, by each rank
        wanted = self._send(rows[order], asks, asked)
        found, error = np.empty((0, store.form.width), dtype=store.form.dtype), None
        try:
            found = store.rows(view, wanted)
        except CacheError as damage:
            error = damage
        errors: list[CacheError | None] = [None] * self._world.size
        dist.all_gather_object(errors, error, group=self._group)
        if error or any(errors):
            raise error or next(filter(None, errors))
        out = np.empty((len(rows), store.form.width), dtype=store.form.dtype)
        out[order] = self._send(found, asked, asks)
        return out

    def _send(
        self,
        rows: NDArray[Any],
        to_each: NDArray[np.int64],
        from_each: NDArray[np.int64] | None = None,
    ) -> NDArray[Any]:
        """Send the first of `rows` to the first rank, and so on; returns what each rank sends this one."""
        from_each = to_each if from_each is None else from_each
        flat = np.ascontiguousarray(rows).reshape(len(rows), int(np.prod(rows.shape[1:])))
        out = np.empty((int(from_each.sum()), flat.shape[1]), dtype=flat.dtype)
        dist.all_to_all_single(
            torch.from_numpy(out.view(np.uint8)),
            torch.from_numpy(flat.view(np.uint8)),
            from_each.tolist(),
            to_each.tolist(),
            group=self._group,
        )
        return out.reshape(len(out), *rows.shape[1:])
