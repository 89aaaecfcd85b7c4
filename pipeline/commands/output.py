"""Results on standard output, as a table or as JSON; remarks, which are logged, on standard error."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from sskt.errors import shown

ROOTS = ("pipeline", "sskt", "cache")  # the loggers that carry remarks, at INFO or above


def say(sentence: str) -> None:
    """Print a remark on standard error; under torchrun only the first rank does."""
    if _is_first_rank():
        click.echo(shown(sentence, keep="\n\t"), err=True)


class _Remarks(logging.Handler):
    """Prints each remark on its own line, without time or level."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one remark."""
        say(record.getMessage())


@contextmanager
def show_remarks() -> Iterator[None]:
    """Show the user what this program logs while the context is open."""
    handler, roots = _Remarks(), [logging.getLogger(name) for name in ROOTS]
    levels = [root.level for root in roots]
    for root in roots:
        root.addHandler(handler)
        root.setLevel(logging.INFO)
    try:
        yield
    finally:
        for root, level in zip(roots, levels, strict=True):
            root.removeHandler(handler)
            root.setLevel(level)


def tell(result: str) -> None:
    """Print a result on standard output; under torchrun only the first rank does."""
    if _is_first_rank():
        click.echo(shown(result, keep="\n\t"))


def tell_json(result: Any) -> None:
    """Print plain data as JSON on standard output; under torchrun only the first rank does."""
    tell(json.dumps(result, indent=2))


def show(rows: list[dict[str, Any]], as_json: bool, columns: str | Sequence[str]) -> None:
    """Print rows as JSON, or as a table of the `columns` that any row has."""
    if as_json:
        tell_json(rows)
        return
    if not rows:
        tell("none")
        return
    names = columns.split() if isinstance(columns, str) else columns
    shown = [name for name in names if any(row.get(name) is not None for row in rows)]
    lines = [[name.replace("_", " ") for name in shown]]
    lines += [[_cell(name, row.get(name)) for name in shown] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:  # never cut or wrapped: users copy paths
        tell("  ".join(map(str.ljust, line, widths)).rstrip())


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name in ("bytes", "nbytes"):
        return f"{value / 1e6:,.1f} MB"
    if name == "hours":  # as a progress bar shows time, rounded up to a second
        minutes, seconds = divmod(math.ceil(3600 * value), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
    if isinstance(value, float):
        return f"{value:,.2f}" if value == 0 or abs(value) >= 0.1 else f"{value:.2g}"
    return f"{value:,}" if isinstance(value, int) else shown(str(value))


def new_run_folder(name: str) -> Path:
    """A fresh default for `--out`: runs/<name>-<time>."""
    return Path("runs") / f"{name}-{datetime.now().astimezone():%Y%m%d-%H%M%S}-{os.getpid()}"
