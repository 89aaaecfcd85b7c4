"""How the ranks of a job share its tasks. Pure arithmetic: claims and entries make it safe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from cache import Unit
from pipeline.runtime import World

_VIEWS_PER_DECODE = 4  # more would leave every view unfinished for longer
T = TypeVar("T")


def split_tasks(views: int, n_blocks: int, *, decodes: bool) -> list[tuple[Unit, ...]]:
    """Split a job into tasks: single units or, if images must be decoded (`decodes`), up to four views of a
    block, drawn one after the other from one decode.
    """
    n_views = _VIEWS_PER_DECODE if decodes else 1
    return [
        tuple(Unit(view, block) for view in range(first, min(first + n_views, views)))
        for first in range(0, views, n_views)
        for block in range(n_blocks)
    ]


def share_of(tasks: Sequence[T], world: World) -> list[T]:
    """The rank's share, every n-th task: disjoint and exhaustive over the ranks, early tasks first."""
    return list(tasks[world.rank :: world.size])


def task_order(tasks: Sequence[T], world: World, *, steal: bool) -> list[T]:
    """A rank's own share in order, then, if it may `steal`, the other ranks' shares, each from its end.

    A rank that steals from a living one meets it as late as possible, and two that steal start at different
    shares.
    """
    order = share_of(tasks, world)
    if steal:
        for offset in range(1, world.size):
            order += reversed(share_of(tasks, World((world.rank + offset) % world.size, world.size)))
    return order
