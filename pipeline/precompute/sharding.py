"""Who does what: how the ranks of a job share tasks. Pure arithmetic; claims and entries keep it safe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from cache.unit import Unit
from pipeline.runtime import World

_VIEWS_TO_A_DECODE = 4  # more would leave every view unfinished for longer
T = TypeVar("T")


def tasks_of(views: int, n_blocks: int, *, decodes: bool) -> list[tuple[Unit, ...]]:
    """What is shared out of a job: a unit each or, where pictures must be decoded (`decodes`), up to four
    views of a block, drawn one after the other from one decode.
    """
    together = _VIEWS_TO_A_DECODE if decodes else 1
    return [
        tuple(Unit(view, block) for view in range(first, min(first + together, views)))
        for first in range(0, views, together)
        for block in range(n_blocks)
    ]


def own(tasks: Sequence[T], world: World) -> list[T]:
    """Every n-th task: disjoint and exhaustive over the ranks, and early tasks are done early."""
    return list(tasks[world.rank :: world.size])


def in_turn(tasks: Sequence[T], world: World, *, steal: bool) -> list[T]:
    """A rank's own tasks in order, then, to `steal`, the others', each share from its end.

    Whoever steals from a living rank meets it as late as possible, and two thieves start at different shares.
    """
    order = own(tasks, world)
    if steal:
        for further in range(1, world.size):
            order += reversed(own(tasks, World((world.rank + further) % world.size, world.size)))
    return order
