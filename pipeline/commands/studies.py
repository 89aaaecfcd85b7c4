"""The commands of what is built of both stages: the demo, the papers' tables, sweeps and explanations."""

from __future__ import annotations

import json
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
    PLANNED,
    SPLIT,
    THREADS,
    WEIGHTS,
    build_execution,
    build_paths,
    build_target,
    choice_option,
    count_option,
    folder_option,
    number_option,
    options,
    section,
    text_option,
    together,
)
from pipeline.commands.output import new_run_folder, say, show, tell

if TYPE_CHECKING:
    from pipeline.runtime import Execution, Paths


def _pairs(_ctx: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    """NAME=SOURCE pairs."""
    for text in texts:
        if "=" not in text:
            raise click.BadParameter(f"{text!r} is not NAME=SOURCE, e.g. places365=program:net.pt2")
    return {name: source for name, _, source in (text.partition("=") for text in texts)}


def _numbers(_ctx: click.Context, _option: click.Parameter, text: str) -> tuple[float, ...]:
    """1,3,10 as numbers above 0."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) <= 0:
        raise click.BadParameter(f"{text!r} is not a list of numbers above 0 such as 1,3,10")
    return numbers


@click.command()
@options(
    CACHE_DIR,
    folder_option("--out", None, "Folder of the report. [default: runs/demo-<time>]"),
    count_option("--seeds", "Students per method.", 3),
    THREADS,
    JSON,
)
def demo(cache_dir: str, out: Path | None, seeds: int, threads: int, as_json: bool) -> None:
    """Run both stages on handwritten digits.

    Few labels and one student, trained three ways: from scratch, with cached logits, and with live sources.
    The first run trains the sources, on drawn letters and strokes, and keeps them. Writes a report.
    """
    from pipeline.studies.demo import run_demo

    out = out or new_run_folder("demo")
    result = run_demo(cache_dir=Path(cache_dir), out=out, seeds=seeds, threads=threads)
    click.echo(json.dumps(result, indent=2) if as_json else result["table"])


@click.command(cls=Sectioned)
@options(
    text_option("--table", "S1 to S8, M2, M7, M8 or R.", required=True),
    text_option(
        "--rows", "Numbers, ranges or words of row names, e.g. 1-3,7 or resnet20-sskt. [default: all]"
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
    together(
        "execution",
        build_execution,
        section(
            EXECUTION,
            choice_option("--amp", "auto fp32 bf16 fp16", "auto", "Precision of the sources."),
            *HOW,
        ),
    ),
    together("paths", build_paths, section(PLACES, WEIGHTS, CONTRACT, DATA_DIR, CACHE_DIR)),
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
    out: Path,
    as_json: bool,
    execution: Execution,
    paths: Paths,
) -> None:
    """Run a published table again, and compare.

    Each source looks once at each target for all rows and seeds. Finished runs are skipped and stopped ones
    go on, so the same command continues where it was. The report marks every row with what differs from the
    paper or its released code, a word and a footnote each. Rows that a table cites from other papers are
    shown and never run.
    """
    from pipeline import api
    from pipeline.studies.reproduce.report import named_marks, price

    campaign = api.Campaign(
        out,
        paths,
        execution,
        seeds,
        api.Shrink(scale, limit),
        views,
        student_amp,
    )
    chosen = [] if rows is None else [part.strip() for part in rows.split(",") if part.strip()]
    results = api.reproduce(table, campaign, rows=chosen, stand_ins=stand_ins, dry_run=dry_run)
    if as_json:
        tell(json.dumps([result.to_dict() for result in results], indent=2))
        return
    named = named_marks(results)
    if dry_run:
        columns = (
            "row runs_left teacher_runs_left epochs samples student_samples teacher_forwards_live differs"
        )
        costs = [result.cost(seeds) | {"differs": result.words(named)} for result in results]
        show(costs, as_json, columns)
    else:
        cells: list[dict[str, Any]] = [dict(result.cells(named)) for result in results]
        show(cells, as_json, "row epochs paper ours difference paper_gain our_gain seeds differs")
    for mark, label in named.items():
        say(f"{label}: {mark.note}")
    say(price(results))
    if dry_run:
        return
    for path in sorted(out.glob(f"table-{table}.*")):
        tell(str(path))


@click.command(cls=Sectioned)
@options(
    together("target", build_target, text_option("--target", "As for sskt train.", required=True), SPLIT),
    click.option(
        "--sources",
        "sources",
        multiple=True,
        required=True,
        help="One set of sources, e.g. places365+imagenet. Repeatable: one row of panels per set.",
    ),
    click.option(
        "--temperatures",
        default="1,3,5,10",
        show_default=True,
        metavar="T,T",
        callback=_numbers,
        help="Temperatures to try.",
    ),
    click.option(
        "--alphas",
        default="0.05,0.1,0.5,1",
        show_default=True,
        metavar="A,A",
        callback=_numbers,
        help="Alphas to try.",
    ),
    choice_option(
        "--transfer-module", "no yes both", "no", "Without, with, or one column of panels for each."
    ),
    choice_option(
        "--aux-loss",
        "ce kd focal cosine smooth-l1",
        None,
        "Loss of the source heads. [default: the recipe's]",
    ),
    count_option("--seeds", "Runs per point.", 1),
    count_option("--views", "Augmented views per sample.", 10),
    choice_option("--recipe", "paper fast", "paper", "Settings to start from. See sskt recipes."),
    count_option("--epochs", "Epochs per run. [default: the recipe's]"),
    text_option("--model", "Student. [default: the recipe's]"),
    LIMIT,
    choice_option("--student-amp", "auto fp32 bf16 fp16", "auto", "Precision of the students."),
    folder_option("--out", None, "Folder of runs, table and figure. [default: runs/sweep-<target>]"),
    JSON,
    PLANNED,
    together(
        "execution",
        build_execution,
        section(
            EXECUTION,
            choice_option("--amp", "auto fp32 bf16 fp16", "auto", "Precision of the sources."),
            *HOW,
        ),
    ),
    together("paths", build_paths, section(PLACES, WEIGHTS, CONTRACT, DATA_DIR, CACHE_DIR)),
)
def sweep(
    target: str,
    sources: tuple[str, ...],
    temperatures: tuple[float, ...],
    alphas: tuple[float, ...],
    transfer_module: str,
    aux_loss: str | None,
    seeds: int,
    recipe: str,
    epochs: int | None,
    student_amp: str,
    out: Path | None,
    as_json: bool,
    **what: Any,
) -> None:
    """Train over temperature and alpha, and plot the accuracy.

    The picture is that of the paper's figure 4. All runs read the same stores. Finished runs are skipped and
    stopped ones go on.
    """
    from pipeline import api
    from pipeline.data import target_slug
    from sskt.sources import split_names

    modules = {"no": (False,), "yes": (True,), "both": (False, True)}[transfer_module]
    grid = api.Grid(tuple(split_names(names) for names in sources), temperatures, alphas, modules, seeds)
    out = out or Path("runs") / f"sweep-{target_slug(target)}"
    overrides = {"recipe": recipe, "epochs": epochs, "aux_loss": aux_loss}
    rows = api.sweep(target, grid, out=out, amp=student_amp, overrides=overrides, **what)
    show(
        rows,
        as_json,
        "target model sources transfer_module aux_loss temperature alpha mean std seeds diverged",
    )
    if not as_json:
        for path in sorted(out.glob("sweep.*")):
            tell(str(path))


@click.command()
@options(
    click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path)),
    click.option(
        "--picture",
        "image",
        type=click.Path(path_type=Path, dir_okay=False),
        help="An image file. [default: a test sample]",
    ),
    count_option("--sample", "Id of a test sample of the first run. [default: the first]", low=0),
    text_option("--class", "Class to map. [default: each student's own answer]", name="class_name"),
    click.option(
        "--out",
        type=click.Path(path_type=Path, dir_okay=False),
        default=Path("explain.png"),
        show_default=True,
        help="PNG file to write.",
    ),
    together("execution", build_execution, *HOW),
    JSON,
)
def explain(out: Path, as_json: bool, **what: Any) -> None:
    """Show where several students look in one image.

    Grad-CAM of the last block, as in the paper's figure 1: one panel for each of the RUNS.
    """
    from pipeline import api

    rows = api.explain(out=out, **what)
    show(rows, as_json, "run method class share")
    if not as_json:
        click.echo(out)
