"""The papers' commands: their recipes, and their tables run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from commands.front import Sectioned
from commands.options import (
    CACHE_DIR,
    DATA_DIR,
    EXECUTION,
    HOW,
    JSON,
    LIMIT,
    PLACES,
    WEIGHTS,
    build_execution,
    build_places,
    choice_option,
    count_option,
    folder_option,
    number_option,
    options,
    section,
    text_option,
    together,
)
from commands.output import say, show

if TYPE_CHECKING:
    from pipeline.choices import Places
    from pipeline.execution import Execution


def _pairs(_ctx: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    """NAME=SOURCE pairs."""
    for text in texts:
        if "=" not in text:
            raise click.BadParameter(f"{text!r} is not NAME=SOURCE, e.g. places365=program:net.pt2")
    return {name: source for name, _, source in (text.partition("=") for text in texts)}


@click.command()
@options(JSON)
def recipes(as_json: bool) -> None:
    """List how each target is trained: the paper's table 1, and ours."""
    from pipeline.tables import recipe_rows

    columns = "target models epochs lr finetune_lr schedule milestones gamma weight_decay"
    show(recipe_rows(), as_json, f"{columns} loss temperature alpha paper")


@click.command(cls=Sectioned)
@options(
    text_option("--table", "S1 to S8, M2, M7, M8 or R.", required=True),
    text_option(
        "--rows", "Numbers, ranges or words of row names, e.g. 1-3,7 or resnet20-sskt. [default: all]"
    ),
    count_option("--seeds", "Runs of a row.", 3),
    count_option("--views", "Augmented views of every sample.", 10),
    number_option("--scale", "Part of the paper's epochs.", default=1.0),
    LIMIT,
    click.option(
        "--stand-in",
        "stand_ins",
        multiple=True,
        metavar="NAME=SOURCE",
        callback=_pairs,
        help="Another source in place of a published one, e.g. places365=program:net.pt2. Repeatable.",
    ),
    choice_option("--student-amp", "auto fp32 bf16 fp16", "auto", "Precision of the students."),
    click.option("--dry-run", is_flag=True, help="List the rows and what they cost; run nothing."),
    folder_option("--out", None, "Folder of runs and report. [default: runs/table-<table>]"),
    JSON,
    together(
        "execution",
        build_execution,
        section(
            EXECUTION,
            choice_option("--amp", "auto fp32 bf16 fp16", "auto", "Precision of the sources."),
            *HOW,
        ),
    ),
    together("places", build_places, section(PLACES, WEIGHTS, DATA_DIR, CACHE_DIR)),
)
def reproduce(
    table: str,
    rows: str | None,
    seeds: int,
    views: int,
    scale: float,
    limit: int | None,
    stand_ins: dict[str, str],
    student_amp: str,
    dry_run: bool,
    out: Path | None,
    as_json: bool,
    execution: Execution,
    places: Places,
) -> None:
    """Run a published table again, and set ours beside it.

    Each source looks once at each target for all rows and seeds. Finished runs are skipped and stopped ones
    go on, so the same command continues where it was. The report says of every row in what it differs from
    the paper.
    """
    from pipeline.reproduce.attempt import Shrink
    from pipeline.reproduce.report import price
    from pipeline.reproduce.runner import Campaign, run_reproduce

    campaign = Campaign(
        out or Path("runs") / f"table-{table}",
        places,
        execution,
        seeds,
        Shrink(scale, limit),
        views,
        student_amp,
    )
    chosen = [] if rows is None else [part.strip() for part in rows.split(",") if part.strip()]
    results = run_reproduce(table, campaign, rows=chosen, stand_ins=stand_ins, dry_run=dry_run, say=say)
    if as_json:
        click.echo(json.dumps([result.to_dict() for result in results], indent=2))
        return
    cells: list[dict[str, Any]] = [dict(result.cells()) for result in results]
    show(cells, as_json, "row epochs paper ours difference seeds differs_in")
    say(price(results))
    if not dry_run:
        for suffix in ("md", "csv", "html"):
            click.echo(campaign.out / f"table-{table}.{suffix}")
