"""Ours beside the paper's: Markdown for a text, CSV for a program, HTML for a colleague."""

from __future__ import annotations

import csv
import html
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.files import write_durably
from sskt.errors import RunError
from sskt.published import Published

_COLUMNS = ("row", "sources", "epochs", "metric", "paper", "ours", "difference", "seeds", "differs_in")
_STYLE = (
    "body{font:15px system-ui,sans-serif;max-width:75rem;margin:2rem auto;color:#222}"
    "table{border-collapse:collapse}td,th{padding:.3rem .7rem;border-bottom:1px solid #ddd;text-align:left}"
    "th{background:#f5f5f5}.mark{color:#a40000}"
)


@dataclass(frozen=True, slots=True)
class Result:
    """One published row and what came out here so far."""

    row: Published
    metric: str  # ours that the paper's is set beside
    values: tuple[float, ...]  # percent, one a finished seed
    marks: tuple[str, ...]  # in what it differs from the paper
    epochs: int
    sources: tuple[str, ...]
    stored: Mapping[tuple[str, str], int]  # teacher forwards by target and source, shared by all rows
    live: int  # teacher forwards of this row without a store

    def cells(self) -> dict[str, str]:
        """The row of a table."""
        ours = spread(self.values)
        gap = f"{statistics.mean(self.values) - self.row.metric_percent:+.2f}" if self.values else ""
        theirs = f"{self.row.metric_percent:.2f}" + (f" ± {self.row.std:.2f}" if self.row.std else "")
        return {
            "row": self.row.name,
            "sources": ", ".join(self.sources),
            "epochs": str(self.epochs),
            "metric": self.metric.removeprefix("test_"),
            "paper": theirs,
            "ours": ours,
            "difference": gap,
            "seeds": str(len(self.values)),
            "differs_in": "; ".join(self.marks),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {**self.cells(), "values": list(self.values), "teacher_forwards_live": self.live}


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    if not values:
        return "-"
    more = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{more}"


def price(results: Sequence[Result]) -> str:
    """What the teachers cost with the stores, and would cost without, in one sentence."""
    stored: dict[tuple[str, str], int] = {}
    for result in results:
        stored |= result.stored
    live = sum(result.live for result in results)
    if not live:
        return "No row has sources."
    each = ", ".join(f"{n:,} of {source} for {target}" for (target, source), n in stored.items())
    return (
        f"Teacher forwards: {sum(stored.values()):,} for all rows and seeds ({each}); "
        f"asked live in every epoch they would be {live:,}, {live / sum(stored.values()):.0f} x as many."
    )


def write_report(table: str, results: Sequence[Result], folder: Path) -> list[Path]:
    """table-<name>.md, .csv and .html; returns the paths. Raises RunError if they cannot be written."""
    rows = [result.cells() for result in results]
    texts = {
        "md": _markdown(table, rows, price(results)),
        "csv": _csv(results),
        "html": _html(table, rows, price(results)),
    }
    paths = []
    for suffix, text in texts.items():
        path = folder / f"table-{table}.{suffix}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_durably(path, text.encode())
        except OSError as error:
            raise RunError(
                f"{path}: cannot be written ({error.strerror or error}); choose another --out"
            ) from error
        paths.append(path)
    return paths


def _markdown(table: str, rows: Sequence[Mapping[str, str]], cost: str) -> str:
    lines = [f"# Table {table}, run again", "", f"| {' | '.join(_COLUMNS)} |", "|" + "---|" * len(_COLUMNS)]
    lines += [f"| {' | '.join(row[name] for name in _COLUMNS)} |" for row in rows]
    return "\n".join([*lines, "", cost, ""])


def _csv(results: Sequence[Result]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*_COLUMNS, "values"])
    for result in results:
        cells = result.cells()
        writer.writerow([*(cells[name] for name in _COLUMNS), " ".join(f"{v:.4f}" for v in result.values)])
    return out.getvalue()


def _html(table: str, rows: Sequence[Mapping[str, str]], cost: str) -> str:
    head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=mark' if name == 'differs_in' else ''}>{html.escape(row[name])}</td>"
            for name in _COLUMNS
        )
        + "</tr>\n"
        for row in rows
    )
    return (
        f"<!doctype html><meta charset=utf-8><title>Table {table}</title>\n<style>{_STYLE}</style>\n"
        f"<h1>Table {table}, run again</h1>\n<table><tr>{head}</tr>\n{body}</table>\n"
        f"<p>{html.escape(cost)}</p>\n"
    )
