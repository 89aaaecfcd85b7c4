"""The processes that share a job: a launcher's ranks, or one process alone.

Stage one's ranks each take their own units. Stage two's are joined: each step's batch is cut into one part
per rank, and gradients are those of the whole batch. With several labels per image that holds except for
entries that are not counted, of which parts may hold different numbers.
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
    """The place of this process, `rank`, among `size` processes."""

    rank: int = 0
    size: int = 1

    @classmethod
    def from_environment(cls) -> Self:
        """RANK and WORLD_SIZE as set by the user or a launcher, else one process alone; RunError if they make
        no sense.
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
        """Whether this is the one that writes files and speaks to the user."""
        return self.rank == 0

    def part(self, n: int) -> slice:
        """The part of n rows that is this rank's; parts differ by at most one row."""
        return slice(self.rank * n // self.size, (self.rank + 1) * n // self.size)

    def parallel(self, module: nn.Module, device: torch.device, *, may_have_unused: bool) -> nn.Module:
        """`module` with gradients that are averaged over the ranks; `may_have_unused` says that some of its
        weights may play no part in the losses, which takes a look at the graph in every step.
        """
        if self.size == 1:
            return module
        return DistributedDataParallel(
            module,
            device_ids=[device] if device.type == "cuda" else None,
            find_unused_parameters=may_have_unused,
        )

    def weight(self, n_part: int, n_all: int) -> float:
        """What a rank's mean loss is multiplied by, so that the ranks' average is the whole batch's mean."""
        return n_part * self.size / n_all

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of every rank's `values`, on every rank."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def all_gather(self, mine: Any) -> list[Any]:
        """Every rank's plain data, in order of rank."""
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
        """Give every rank the first one's buffers: each has batch statistics of its own parts."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)


@contextmanager
def join_world(device: torch.device) -> Iterator[World]:
    """Join the ranks that the launcher's environment names; without one, this process is alone.

    They stay joined to the end of the process: torch joins them once only, and a series has many runs.
    """
    if World.from_environment().size == 1:
        yield World()
        return
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    yield World(dist.get_rank(), dist.get_world_size())
