"""One page that compares several runs: a table, means over seeds, curves and classes."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cache import Location, is_file, local_path, location, read_files
from pipeline.runtime import coerce
from pipeline.studies.report import figures, runs
from pipeline.studies.report.page import write_page
from pipeline.train import read_metrics
from sskt.errors import shown

_MOST_LINES = 12  # runs that one picture tells apart
_MOST_COLUMNS = 8  # of the table of classes


def compare(rows: Sequence[Mapping[str, Any]], out: Path | str) -> Path:
    """Write one page of HTML about runs, rows of `list_runs`, and return its path. Runs of one target share
    their pictures; classes are shown where `sskt evaluate` has left a confusion matrix. Raises RunError if
    the page cannot be written.
    """
    out = coerce.path(out, "out")
    names = runs.differing(rows)
    write_page(
        out,
        "compare.html",
        title=f"{len(rows)} runs",
        columns=[*map(runs.heading, names)],
        rows=[_row(row, names, out) for row in rows],
        means=[_mean(row, names) for row in runs.over_seeds(rows)],
        targets=[_target(name, [row for row in rows if row["target"] == name]) for name in _targets(rows)],
        most=_MOST_LINES,
    )
    return out


def _targets(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["target"] for row in rows if row["target"]))


def _row(row: Mapping[str, Any], names: Sequence[str], out: Path) -> dict[str, Any]:
    page = local_path(location(row["run"]) / "report.html")
    return {
        **{name: row.get(name) for name in ("target", "model", "method", "seed", "epoch_s")},
        "name": shown(row["run"]),
        "state": shown(row["state"]),
        "value": runs.value_of(row),
        "best": next((row[f"best_{name}"] for name in runs.METRICS if f"best_{name}" in row), None),
        "settings": [shown(runs.text_of(row["settings"].get(name))) for name in names],
        "page": os.path.relpath(page, out.parent) if page and page.is_file() else None,
    }


def _mean(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {**row, "settings": [shown(runs.text_of(row["settings"].get(name))) for name in names]}


def _target(target: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The pictures and the classes of the runs of one target, best first."""
    shown_rows = [row for row in rows if is_file(location(row["run"]) / "metrics.jsonl")][:_MOST_LINES]
    labels = _labels([row["run"] for row in shown_rows])
    metrics = {labels[row["run"]]: read_metrics(location(row["run"])) for row in shown_rows}
    pictures = []
    for title, names, ylabel in (
        ("accuracy", ("val_top1", "test_top1", "val_map", "test_map"), "percent"),
        ("training loss of the labels", ("primary_loss", "train_loss"), "loss"),
    ):
        series = {
            label: next(iter(found.values()))
            for label, of_run in metrics.items()
            if (found := figures.series_of(of_run, names))
        }
        if series:
            kind = "held-out accuracy" if title == "accuracy" else title
            pictures.append({"title": kind, "uri": figures.curves(series, ylabel=ylabel)})
    return {
        "name": shown(target),
        "left_out": max(0, len(rows) - len(shown_rows)),
        "pictures": pictures,
        **_classes(rows, labels),
    }


def _classes(rows: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> dict[str, Any]:
    """Top-1 of each class by run, from the confusion matrices that are there, and which runs have none."""
    tables = {row["run"]: _read_confusion(location(row["run"]) / "confusion.csv") for row in rows}
    having = [row["run"] for row in rows if tables[row["run"]]][:_MOST_COLUMNS]
    classes = list(dict.fromkeys(name for run in having for name in tables[run]))
    return {
        "class_columns": [labels.get(run, shown(Path(run).name)) for run in having],
        "classes": [{"name": name, "values": [tables[run].get(name) for run in having]} for name in classes],
        "without": [shown(run) for run in tables if not tables[run]],
    }


def _read_confusion(path: Location) -> dict[str, float | None]:
    """Each class's top-1 in percent, by a matrix that `sskt evaluate` wrote; empty without one."""
    content = read_files([path])[0]
    if content is None:
        return {}
    _, *lines = csv.reader(io.StringIO(content.decode(), newline=""))
    counts = [(name, list(map(int, numbers))) for name, *numbers in lines]
    return {
        name: 100 * numbers[at] / sum(numbers) if sum(numbers) else None
        for at, (name, numbers) in enumerate(counts)
    }


def _labels(paths: Sequence[str]) -> dict[str, str]:
    """Short names of runs: their folders, without what all of them share."""
    if len(paths) < 2:
        return {path: shown(Path(path).name) for path in paths}
    common = os.path.commonpath([os.path.abspath(path) for path in paths])  # noqa: PTH100 - links stay
    return {path: shown(os.path.relpath(os.path.abspath(path), common)) for path in paths}  # noqa: PTH100
