"""The progress bars of long pieces of work: on standard error, silent where that is not a terminal."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

console = Console(stderr=True, highlight=False)


class Progress:
    """Bars over items, with their rate, the time gone and the time left; use it in a `with` block."""

    def __init__(self, title: str | None = None, *, total: int = 0, done: int = 0) -> None:
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._first = None if title is None else self.add(title, total=total, done=done)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def add(self, title: str, *, total: int, done: int = 0) -> TaskID:
        """One more bar, of which `done` items are there from before; returns its number."""
        return self._bar.add_task(title, total=total, completed=done, rate="", note="")

    def advance(self, n: int, note: str = "", *, bar: TaskID | None = None) -> None:
        """`n` more items of a bar (left out: the first) are done; `note` replaces the text at its end."""
        task = self._first if bar is None else bar
        if task is not None:
            self._bar.update(task, advance=n, note=note)
            speed = self._bar.tasks[task].speed
            self._bar.update(task, rate=f"{speed:,.0f}/s" if speed else "")
