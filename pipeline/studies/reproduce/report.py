"""Report our figures beside the paper's, as Markdown, CSV, HTML and a plot."""

from __future__ import annotations

import base64
import html
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from pipeline.runtime import csv_text, write_result
from pipeline.studies.reproduce.gain_plot import Gain, draw_gains
from pipeline.studies.reproduce.marks import Mark, cited, labels
from pipeline.studies.reproduce.published import GRAPH, Published, published_rows

_FIGURES = ("metric", "paper", "ours", "difference", "paper_gain", "our_gain", "seeds")
_COLUMNS = ("row", "sources", "epochs", *_FIGURES, "differs", "differs_in")
_SHOWN = ("row", *_FIGURES, "differs")  # in Markdown and HTML; the row's name and notes tell its sources
_STYLE = (
    "body{font:15px system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse}td,th{padding:.3rem .7rem;border-bottom:1px solid #ddd;text-align:right}"
    "th{background:#f5f5f5}td:first-child,th:first-child{text-align:left}img{max-width:100%}"
    ".mark{color:#a40000}"
)
_SSKTS = (
    "Accuracies in percent, mean and standard deviation over the seeds, ours of the last epoch; the paper's "
    "deviations are over 3 tests of one seed."
)
_GRAPHS = (
    "Accuracies, and for CCV mean average precision, in percent; ours of the last epoch, mean and standard "
    "deviation over the seeds of students. Rows without a student have one figure."
)
_LEGEND = (
    "A gain is over the same network from scratch, in percentage points; its error bar in the picture is the "
    "root of the summed squares of both standard deviations, the row's and scratch's. The words of the last "
    "column are explained below the table."
)


@dataclass(frozen=True, slots=True)
class Scratch:
    """The same network from scratch, which a row's gain is measured against."""

    paper: float  # percent
    values: tuple[float, ...]  # ours, percent, one per finished seed; empty: not run in this folder


@dataclass(frozen=True, slots=True)
class Result:
    """One published row and our results so far."""

    row: Published
    metric: str  # our metric, compared with the paper's
    values: tuple[float, ...]  # percent, one per finished seed
    marks: tuple[Mark, ...]  # how it differs from the paper
    epochs: int
    samples: int  # training samples used
    sources: tuple[str, ...]
    scratch: Scratch | None  # None: this is the scratch row, or the paper has none
    stored: Mapping[tuple[str, str], int]  # teacher forwards by target and source, shared by all rows
    live: int  # teacher forwards that this row's runs would take without a store
    teachers_left: int  # unfinished runs that train its teachers, not counting those of earlier rows
    runs: int | None = None  # that give its values; None: one for each seed

    @classmethod
    def cited(cls, row: Published) -> Self:
        """A row that the table cites from another paper: nothing to run, at no cost."""
        return cls(row, "", (), (cited(row),), 0, 0, (), None, {}, 0, 0)

    @property
    def gain(self) -> Gain | None:
        """The paper's and our gain over scratch; None until both runs are finished."""
        if self.scratch is None or not self.scratch.values or not self.values:
            return None
        paper = self.row.metric_percent - self.scratch.paper
        ours = statistics.mean(self.values) - statistics.mean(self.scratch.values)
        return Gain(self.row.name, paper, ours, _deviation_of_difference(self.values, self.scratch.values))

    def cells(self, named: Mapping[Mark, str]) -> dict[str, str]:
        """Table cells by column; `named` are the `labels` of the page."""
        ours = spread(self.values)
        gap = f"{statistics.mean(self.values) - self.row.metric_percent:+.2f}" if self.values else ""
        paper = f"{self.row.metric_percent:.2f}"
        paper += "" if self.row.std is None else f" ± {self.row.std:.2f}"
        gain = self.gain
        return {
            "row": self.row.name,
            "sources": ", ".join(self.sources),
            "epochs": "" if self.row.is_cited else str(self.epochs),
            "metric": self.metric.removeprefix("test_"),
            "paper": paper,
            "ours": ours,
            "difference": gap,
            "paper_gain": f"{self.row.metric_percent - self.scratch.paper:+.2f}" if self.scratch else "",
            "our_gain": f"{gain.ours:+.2f}" if gain else "",
            "seeds": str(len(self.values)),
            "differs": self.words(named),
            "differs_in": "; ".join(mark.note for mark in self.marks),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`; marks are not numbered, since their notes come with them."""
        return {
            **self.cells({mark: mark.word for mark in self.marks}),
            "marks": [asdict(mark) for mark in self.marks],
            "values": list(self.values),
            "training_samples": self.samples,
            "teacher_forwards_live": self.live,
        }

    def words(self, named: Mapping[Mark, str]) -> str:
        """The row's marks, as `named` on the page."""
        return ", ".join(named[mark] for mark in self.marks)

    def cost(self, seeds: int) -> dict[str, Any]:
        """What remains of `seeds` runs, as a table row; samples include those of its teachers."""
        left = 0 if self.row.is_cited else (seeds if self.runs is None else self.runs) - len(self.values)
        return {
            "row": self.row.name,
            "runs_left": left,
            "teacher_runs_left": self.teachers_left or None,
            "epochs": self.epochs,
            "samples": self.samples,
            "student_samples": (left + self.teachers_left) * self.epochs * self.samples,
            "teacher_forwards_live": self.live,
        }


def _deviation_of_difference(values: Sequence[float], scratch: Sequence[float]) -> float | None:
    """Deviation of mean - mean: the root of the summed squares of both standard deviations; None if either
    side has fewer than two seeds.
    """
    if min(len(values), len(scratch)) < 2:
        return None
    return math.hypot(statistics.stdev(values), statistics.stdev(scratch))


def in_order(table: str, results: Sequence[Result]) -> list[Result]:
    """The results in the table's order."""
    place = {row: number for number, row in enumerate(published_rows(table))}
    return sorted(results, key=lambda result: place[result.row])


def named_marks(results: Sequence[Result]) -> dict[Mark, str]:
    """The `labels` of a page that shows these rows."""
    return labels(mark for result in results for mark in result.marks)


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation, as text."""
    if not values:
        return "-"
    more = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{more}"


def price(results: Sequence[Result]) -> str:
    """The teachers' cost with the stores and without, in one sentence."""
    stored: dict[tuple[str, str], int] = {}
    for result in results:
        stored |= result.stored
    if not stored:
        return "No row has sources."
    live = sum(result.live for result in results)
    each = ", ".join(f"{n:,} of {source} for {target}" for (target, source), n in stored.items())
    return (
        f"Teacher forwards: {sum(stored.values()):,} for all rows and seeds ({each}); "
        f"asked live in every epoch they would be {live:,}, {live / sum(stored.values()):.0f} x as many."
    )


def write_report(table: str, results: Sequence[Result], folder: Path) -> list[Path]:
    """Write table-<name>.md, .csv, .html, and .png if any gain over scratch is known; returns the paths.

    Raises RunError if they cannot be written.
    """
    gains = [gain for gain in (result.gain for result in results) if gain is not None]
    image = draw_gains(f"Table {table}", gains) if gains else None
    files = {
        "md": _markdown(table, results, image is not None).encode(),
        "csv": _csv(results).encode(),
        "html": _html(table, results, image).encode(),
    }
    if image is not None:
        files["png"] = image
    paths = {folder / f"table-{table}.{suffix}": data for suffix, data in files.items()}
    for path, data in paths.items():
        write_result(path, data)
    return [*paths]


def _legend(table: str) -> str:
    return f"{_GRAPHS if table == GRAPH else _SSKTS} {_LEGEND}"


def _markdown(table: str, results: Sequence[Result], has_image: bool) -> str:
    named = named_marks(results)
    rows = [result.cells(named) for result in results]
    lines = [f"# Table {table}, run again", ""]
    lines += [f"| {' | '.join(_SHOWN)} |", "|---|" + "---:|" * (len(_SHOWN) - 1)]
    lines += [f"| {' | '.join(row[name] for name in _SHOWN)} |" for row in rows]
    lines += ["", _legend(table), "", "Differs from the paper:", ""]
    lines += [f"* {label}: {mark.note}" for mark, label in named.items()] or ["* in nothing"]
    lines += ["", price(results), ""]
    return "\n".join([*lines, f"![gains over scratch](table-{table}.png)", ""] if has_image else lines)


def _csv(results: Sequence[Result]) -> str:
    named = named_marks(results)
    rows = [
        [*(result.cells(named)[name] for name in _COLUMNS), " ".join(f"{v:.4f}" for v in result.values)]
        for result in results
    ]
    return csv_text([[*_COLUMNS, "values"], *rows])


def _html(table: str, results: Sequence[Result], image: bytes | None) -> str:
    named = named_marks(results)
    head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in _SHOWN)
    body = "".join(_html_row(result.cells(named)) for result in results)
    notes = "".join(
        f"<li><span class=mark>{label}</span>: {html.escape(mark.note)}</li>\n"
        for mark, label in named.items()
    )
    figure = ""
    if image is not None:
        data = base64.b64encode(image).decode()
        figure = f'<p><img alt="gains over scratch" src="data:image/png;base64,{data}"></p>\n'
    return (
        f"<!doctype html><meta charset=utf-8><title>Table {table}</title>\n<style>{_STYLE}</style>\n"
        f"<h1>Table {table}, run again</h1>\n<table><tr>{head}</tr>\n{body}</table>\n"
        f"<p>{_legend(table)}</p>\n"
        f"<p>Differs from the paper:</p>\n<ul>\n{notes or '<li>in nothing</li>'}</ul>\n"
        f"<p>{html.escape(price(results))}</p>\n{figure}"
    )


def _html_row(cells: Mapping[str, str]) -> str:
    marked = {"differs": " class=mark"}
    shown = (f"<td{marked.get(name, '')}>{html.escape(cells[name])}</td>" for name in _SHOWN)
    return f"<tr>{''.join(shown)}</tr>\n"
