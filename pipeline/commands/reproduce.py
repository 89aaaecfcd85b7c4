"""The command that runs a published table again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.front import Sectioned
from pipeline.commands.options import (
    CACHE_DIR,
    CONTRACT,
    DATA_DIR,
    EXECUTION,
    HOW,
    JSON,
    LIMIT,
    PLACES,
    WEIGHTS,
    as_argument,
    build_execution,
    build_paths,
    choice_option,
    count_option,
    folder_option,
    number_option,
    options,
    section,
    text_option,
)
from pipeline.commands.output import say, show, tell, tell_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.api import GraphSettings
    from pipeline.runtime import Execution, Paths
    from pipeline.studies.reproduce.report import Result


def _pairs(_ctx: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    """NAME=SOURCE pairs."""
    for text in texts:
        if "=" not in text:
            raise click.BadParameter(f"{text!r} is not NAME=SOURCE, e.g. places365=program:net.pt2")
    return {name: source for name, _, source in (text.partition("=") for text in texts)}


def _build_graph(pretext_epochs: int | None, side_px: int, small: bool) -> GraphSettings:
    """What table G has of its own."""
    from pipeline.api import GraphSettings

    return GraphSettings(pretext_epochs, side_px, small)


@click.command(cls=Sectioned)
@options(
    text_option("--table", "S1 to S8, M2, M7, M8 or R of SSKT; G of graph distillation.", required=True),
    text_option(
        "--rows", "Numbers, ranges or words of row names, e.g. 1-3,7 or resnet20-sskt. [default: all]"
    ),
    click.option(
        "--target", "targets", multiple=True, help="Only rows of this target. Repeatable. [default: all]"
    ),
    count_option("--seeds", "Runs per row.", 3),
    count_option("--views", "Augmented views per sample.", 10),
    number_option("--scale", "Fraction of the paper's epochs.", default=1.0),
    LIMIT,
    click.option(
        "--stand-in",
        "stand_ins",
        multiple=True,
        metavar="NAME=SOURCE",
        callback=_pairs,
        help="Use another source in place of a published one, e.g. places365=program:net.pt2. Repeatable.",
    ),
    choice_option("--student-amp", "auto fp32 bf16 fp16", "auto", "Precision of the students."),
    click.option("--dry-run", is_flag=True, help="List the rows and their cost; run nothing."),
    folder_option(
        "--out", "runs/papers", "Folder of runs and reports; a row that two tables share runs once."
    ),
    JSON,
    as_argument(
        "graph",
        _build_graph,
        section(
            "Table G",
            count_option(
                "--pretext-epochs", "Epochs of each pretext task. [default: the task's own, times --scale]"
            ),
            count_option("--size", "Side in pixels of what students and teachers see.", 224, name="side_px"),
            click.option(
                "--small", is_flag=True, help="Take networks with an eighth of the channels, to try it out."
            ),
        ),
    ),
    as_argument(
        "execution",
        build_execution,
        section(
            EXECUTION,
            choice_option("--amp", "auto fp32 bf16 fp16", "auto", "Precision of the sources."),
            *HOW,
        ),
    ),
    as_argument("paths", build_paths, section(PLACES, WEIGHTS, CONTRACT, DATA_DIR, CACHE_DIR)),
)
def reproduce(
    table: str,
    rows: str | None,
    targets: tuple[str, ...],
    seeds: int,
    views: int,
    scale: float,
    limit: int | None,
    stand_ins: dict[str, str],
    student_amp: str,
    dry_run: bool,
    out: Path,
    as_json: bool,
    graph: GraphSettings,
    execution: Execution,
    paths: Paths,
) -> None:
    """Run a published table again, and compare.

    Each source looks once at each target for all rows and seeds. Finished runs are skipped and stopped ones
    go on, so the same command continues where it was. The report marks every row with what differs from the
    paper or its released code, a word and a footnote each. Rows that a table cites from other papers are
    shown and never run. Table G trains its teachers first, pretext tasks included, once for all rows and
    seeds.
    """
    from pipeline import api

    shrink = api.Shrink(scale, limit)
    campaign = api.Campaign(out, paths, execution, seeds, shrink, views, student_amp, graph)
    chosen = [] if rows is None else [part.strip() for part in rows.split(",") if part.strip()]
    results = api.reproduce(
        table, campaign, rows=chosen, targets=targets, stand_ins=stand_ins, dry_run=dry_run
    )
    parts = api.price_graph(campaign, rows=chosen, targets=targets) if dry_run and table == "G" else []
    if as_json:
        listed = [result.to_dict() for result in results]
        tell_json({"rows": listed, "price": parts} if parts else listed)
        return
    _show_results(results, seeds if dry_run else None)
    if parts:
        show(parts, as_json, "target what runs_left forwards bytes hours")
    for path in () if dry_run else sorted(out.glob(f"table-{table}.*")):
        tell(str(path))


def _show_results(results: Sequence[Result], seeds: int | None) -> None:
    """Our figures and the paper's or, of a dry run of so many `seeds`, what is left to do."""
    from pipeline.studies.reproduce.report import named_marks, price

    named = named_marks(results)
    if seeds is not None:
        costs = [result.cost(seeds) | {"differs": result.words(named)} for result in results]
        left = "row runs_left teacher_runs_left epochs samples student_samples teacher_forwards_live differs"
        show(costs, False, left)
    else:
        cells: list[dict[str, Any]] = [dict(result.cells(named)) for result in results]
        show(cells, False, "row epochs paper ours difference paper_gain our_gain seeds differs")
    for mark, label in named.items():
        say(f"{label}: {mark.note}")
    say(price(results))
