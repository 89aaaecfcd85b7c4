"""How a job of stage one is split into tasks, and how ranks share them. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from cache import Unit
from pipeline.runtime import World

_VIEWS_PER_DECODE = 4  # more would leave every view unfinished for longer
Task = tuple[Unit, ...]


def split_tasks(views: int, n_blocks: int, *, decodes: bool) -> list[Task]:
    """Split a job into tasks: single units or, if images must be decoded (`decodes`), up to four views of a
    block, drawn one after the other from one decode.
    """
    n_views = _VIEWS_PER_DECODE if decodes else 1
    return [
        tuple(Unit(view, block) for view in range(first, min(first + n_views, views)))
        for first in range(0, views, n_views)
        for block in range(n_blocks)
    ]


def share_of(tasks: Sequence[Task], world: World) -> list[Task]:
    """The rank's share, every n-th task: disjoint and exhaustive over the ranks, early tasks first."""
    return list(tasks[world.rank :: world.size])
