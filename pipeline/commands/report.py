"""The commands that show what came out of runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.options import FILE, JSON, SCORING, options
from pipeline.commands.output import show, tell
from pipeline.commands.told import paths_of

if TYPE_CHECKING:
    from pipeline.runtime import Execution

_COLUMNS = "run target model method seed test_top1 test_map best_test_top1 best_test_map epoch_s"


@click.command()
@options(
    click.argument("folders", nargs=-1, metavar="[FOLDER]..."),
    click.option(
        "--html",
        "page",
        type=FILE,
        help="Write a page that compares them: curves, classes and means over seeds.",
    ),
    JSON,
)
def runs(folders: tuple[str, ...], page: Path | None, as_json: bool) -> None:
    """List runs, best first, with the settings in which they differ.

    FOLDERs, or URLs, are runs, or hold some at any depth. [default: runs] Accuracies are of the last epoch,
    in percent; of a run that has not finished, of the last one that was scored.
    """
    from pipeline import api
    from pipeline.studies.report.runs import differing, heading, text_of

    rows = api.list_runs(folders or ("runs",))
    if page is not None:
        api.compare(rows, page)
    if as_json:
        show(rows, as_json, "")
        return
    columns = {name: f"{heading(name)} " for name in differing(rows)}
    cells = [
        {**row, **{columns[name]: text_of(row["settings"].get(name)) for name in columns if row["settings"]}}
        for row in rows
    ]
    show(cells, as_json, [*_COLUMNS.split(), *columns.values(), "state"])
    if page is not None:
        tell(str(page))


@click.command()
@options(
    click.argument("run"),
    click.option(
        "--out",
        metavar="FILE|URL",
        help="HTML file to write. [default: report.html in the run's folder]",
    ),
    SCORING,
)
def report(
    run: str,
    out: str | None,
    clips: int | str,
    best: bool,
    execution: Execution,
    target: str | None,
    **_told: Any,
) -> None:
    """Write a page about a run.

    One HTML file without links to others: curves, the mistakes that the student is surest of, confusions,
    classes, what each source cost and how far it agrees with the labels, and the probe. Where data or stores
    are missing, the page says so.
    """
    from pipeline import api

    which = "best" if best else "last"
    how: dict[str, Any] = {"execution": execution, "which": which, "clips": clips}
    tell(str(api.report(run, out=out, paths=paths_of(run), target=target, **how)))
