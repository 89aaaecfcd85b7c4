"""Run the rows of a table, every one with a first seed before any has a second."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from pipeline.runtime import World
from pipeline.studies.reproduce.marks import Mark
from pipeline.studies.reproduce.published import Published
from pipeline.train import DivergedError, RunBusyError

log = logging.getLogger(__name__)


class Runnable(Protocol):
    """A row, and the marks that running it may add to."""

    @property
    def row(self) -> Published:
        """As published."""
        ...

    @property
    def marks(self) -> list[Mark]:
        """How it differs from the paper."""
        ...


R = TypeVar("R", bound=Runnable)


def run_rows(
    chosen: Sequence[R],
    seeds: int,
    world: World,
    *,
    run: Callable[[R, int], None],
    report: Callable[[], object],
) -> None:
    """`run` every row with every seed; the first rank calls `report` after each, or once if there is none.

    A run that diverges is marked, one that another process is training is left to it, and the others
    continue; with several ranks either stops all.
    """
    for seed in range(seeds):
        for number, attempt in enumerate(chosen, start=1):
            log.info(f"seed {seed}, row {number} of {len(chosen)}: {attempt.row.name}")
            try:
                run(attempt, seed)
            except (DivergedError, RunBusyError) as error:
                if world.size > 1:  # the other ranks would wait for this one
                    raise
                log.info(f"{attempt.row.name}: {error}")
                if isinstance(error, DivergedError):
                    attempt.marks.append(Mark("diverged", f"seed {seed} diverged"))
            if world.is_first:
                report()
    if world.is_first and not chosen:
        report()
