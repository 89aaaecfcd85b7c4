"""Progress of long work on standard error: bars on a terminal, elsewhere an occasional line.

Under torchrun only the first rank shows any.
"""

from __future__ import annotations

import os
from datetime import timedelta
from time import monotonic
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

from sskt.errors import shown

console = Console(stderr=True, highlight=False, emoji=False)  # print names verbatim

_FIRST_LINE_S, _NEXT_LINE_S = 30.0, 60.0  # shorter work leaves no line in a log


def _is_terminal() -> bool:
    """Whether bars can move: rich takes a pipe for a terminal under FORCE_COLOR, which notebooks set."""
    return console.is_terminal and console.file.isatty()


class Progress:
    """Bars over items, with rate, elapsed and remaining time; use it in a `with` block."""

    def __init__(self, title: str | None = None, *, total: int = 0, done: int = 0) -> None:
        self._shown = os.environ.get("RANK", "0") == "0"
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not (self._shown and _is_terminal()),
            transient=True,
        )
        self._begun = monotonic()
        self._next_line = self._begun + _FIRST_LINE_S
        self._first = None if title is None else self.add(title, total=total, done=done)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def add(self, title: str, *, total: int, done: int = 0) -> TaskID:
        """Add a bar that starts at `done` items; returns its id."""
        return self._bar.add_task(shown(title), total=total, completed=done, rate="", note="", before=done)

    def advance(self, n: int, note: str = "", *, bar: TaskID | None = None) -> None:
        """Count `n` more items as done on a bar (default: the first); `note` replaces the text at its end."""
        task = self._first if bar is None else bar
        if task is not None:
            self._bar.update(task, advance=n, note=note)
            speed = self._bar.tasks[task].speed
            self._bar.update(task, rate=f"{speed:,.0f}/s" if speed else "")
        if not _is_terminal() and monotonic() >= self._next_line:
            self._next_line = monotonic() + _NEXT_LINE_S
            self.say("; ".join(map(self._line, self._bar.tasks)))

    def say(self, sentence: str) -> None:
        """Print a line above the bars."""
        if self._shown:
            console.print(sentence, soft_wrap=True, markup=False)

    def _line(self, task: Task) -> str:
        """A bar in words; the rate is the mean since the start."""
        total, done = int(task.total or 0), int(task.completed)
        rate = (done - task.fields["before"]) / (monotonic() - self._begun)
        words = f"{task.description}: {done:,} of {total:,} ({done / max(total, 1):.0%})"
        if rate > 0:
            words += f", {rate:,.0f}/s, {timedelta(seconds=round((total - done) / rate))} left"
        return f"{words}, {task.fields['note']}" if task.fields["note"] else words
