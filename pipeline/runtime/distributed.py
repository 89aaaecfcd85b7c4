"""The processes that train one student together: torchrun's ranks, or one process alone.

Each step's batch is cut into one share a rank; gradients are those of the whole batch. Of pictures with
several labels they are so but for entries that are not counted, of which shares may hold different numbers.
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
class Ranks:
    """The place of this process among `world` processes."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and speaks to the user."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """The part of n rows that is this rank's; parts differ by at most one row."""
        return slice(self.rank * n // self.world, (self.rank + 1) * n // self.world)

    def parallel(self, module: nn.Module, device: torch.device, *, may_have_unused: bool) -> nn.Module:
        """`module` with gradients that are averaged over the ranks; `may_have_unused` says that some of its
        weights may play no part in the losses, which takes a look at the graph in every step.
        """
        if self.world == 1:
            return module
        return DistributedDataParallel(
            module,
            device_ids=[device] if device.type == "cuda" else None,
            find_unused_parameters=may_have_unused,
        )

    def weight(self, n_share: int, n_all: int) -> float:
        """What a rank's mean loss is multiplied by, so that the ranks' average is the whole batch's mean."""
        return n_share * self.world / n_all

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of every rank's `values`, on every rank."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def gathered(self, mine: Any) -> list[Any]:
        """Every rank's plain data, in order of rank."""
        if self.world == 1:
            return [mine]
        everyone: list[Any] = [None] * self.world
        dist.all_gather_object(everyone, mine)
        return everyone

    def agreed(self, value: bool) -> bool:
        """The first rank's `value`, on every rank."""
        return bool(self.first_ones(value))

    def first_ones(self, value: Any) -> Any:
        """The first rank's plain data or tensors, on every rank."""
        if self.world == 1:
            return value
        said = [value]
        dist.broadcast_object_list(said, src=0)
        return said[0]

    def align(self, module: nn.Module) -> None:
        """Give every rank the first one's buffers: each has batch statistics of its own parts."""
        if self.world > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """The ranks that torchrun's environment names, or one alone.

    They stay joined to the end of the process: torch joins them once only, and a series has many runs.
    """
    if Share.from_environment().n_ranks == 1:
        yield Ranks()
        return
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    yield Ranks(dist.get_rank(), dist.get_world_size())


@dataclass(frozen=True, slots=True)
class Share:
    """One of `n_ranks` equal shares."""

    rank: int = 0
    n_ranks: int = 1

    @classmethod
    def from_environment(cls) -> Self:
        """RANK and WORLD_SIZE as set by the user or a launcher, else the only share; RunError if they make no
        sense.
        """
        rank, n_ranks = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        if not (rank.isdecimal() and n_ranks.isdecimal() and int(rank) < int(n_ranks)):
            raise RunError(
                f"RANK is {rank!r} and WORLD_SIZE is {n_ranks!r}, expected 0 <= RANK < WORLD_SIZE; "
                f"unset both, or give every process a RANK of its own"
            )
        return cls(int(rank), int(n_ranks))
