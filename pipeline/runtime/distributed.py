"""The processes that share a job: a launcher's ranks, or one process alone.

Stage one's ranks each take their own units. Stage two's ranks are joined: each step's batch is split into one
part per rank, and gradients are those of the whole batch. With several labels per image this is exact only if
every part holds equally many ignored entries.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sskt.errors import RunError


@dataclass(frozen=True, slots=True)
class World:
    """The `rank` of this process among `size` processes."""

    rank: int = 0
    size: int = 1
    is_joined: bool = False  # the ranks do everything together, as in `join_world`

    @classmethod
    def from_environment(cls) -> Self:
        """Read RANK and WORLD_SIZE; one process alone if they are unset. Raises RunError if they are
        invalid.
        """
        rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
            raise RunError(
                f"RANK is {rank!r} and WORLD_SIZE is {size!r}, expected 0 <= RANK < WORLD_SIZE; "
                f"unset both, or give every process a RANK of its own"
            )
        return cls(int(rank), int(size))

    @property
    def is_first(self) -> bool:
        """Whether this rank writes files and logs."""
        return self.rank == 0

    def part(self, n: int) -> slice:
        """The rank's part of n rows; parts differ by at most one row."""
        return slice(self.rank * n // self.size, (self.rank + 1) * n // self.size)

    def parallel(self, module: nn.Module, device: torch.device, *, may_have_unused: bool) -> nn.Module:
        """Wrap `module` so that gradients are averaged over the ranks; `may_have_unused` allows weights that
        no loss depends on, at the price of a graph traversal per step.
        """
        if self.size == 1:
            return module
        return DistributedDataParallel(
            module,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,  # no step reads the running averages; `sync_buffers` ends every epoch
            find_unused_parameters=may_have_unused,
        )

    def weight(self, n_part: int, n_all: int) -> float:
        """Factor on a rank's mean loss that makes the ranks' average the whole batch's mean."""
        return n_part * self.size / n_all

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of every rank's `values`, on every rank."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def all_gather(self, mine: Any) -> list[Any]:
        """Every rank's plain data, ordered by rank."""
        if self.size == 1:
            return [mine]
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, mine)
        return everyone

    def broadcast(self, value: Any) -> Any:
        """The first rank's plain data or tensors, on every rank."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def sync_buffers(self, module: nn.Module) -> None:
        """Copy the first rank's buffers to every rank: each has batch statistics of its own parts."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)


@contextmanager
def join_world(device: torch.device) -> Iterator[World]:
    """Join the ranks that the launcher's environment describes; without one, this process is alone.

    They stay joined until the process ends: torch can join only once, and a series has many runs.
    """
    if World.from_environment().size == 1:
        yield World()
        return
    if not dist.is_initialized():
        on_cuda = device.type == "cuda"
        dist.init_process_group("nccl" if on_cuda else "gloo", device_id=device if on_cuda else None)
        atexit.register(dist.destroy_process_group)
    yield World(dist.get_rank(), dist.get_world_size(), is_joined=True)
