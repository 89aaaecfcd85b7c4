"""The commands of what is built of both stages: the demo, sweeps and explanations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.commands.front import Sectioned
from pipeline.commands.options import (
    CACHE_DIR,
    CONTRACT,
    DATA_DIR,
    EXECUTION,
    FILE,
    HOW,
    JSON,
    LIMIT,
    PLACES,
    PLANNED,
    SPLIT,
    THREADS,
    WEIGHTS,
    as_argument,
    build_execution,
    build_paths,
    build_target,
    choice_option,
    count_option,
    folder_option,
    options,
    section,
    text_option,
)
from pipeline.commands.output import new_run_folder, show, tell, tell_json
from pipeline.commands.varied import require_once, varied


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
    if as_json:
        tell_json(result)
    else:
        click.echo(result["table"])


@click.command(cls=Sectioned)
@options(
    as_argument("target", build_target, text_option("--target", "As for sskt train.", required=True), SPLIT),
    click.option(
        "--sources",
        "sources",
        multiple=True,
        required=True,
        help="One set of sources, e.g. places365+imagenet or probe:places365+imagenet. Repeatable: one row "
        "of panels per set.",
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
    click.option(
        "--vary",
        multiple=True,
        metavar="NAME=V,V",
        callback=varied,
        help="Values of another option of sskt train, e.g. transfer-module=no,yes, probe-weight=0.5,0.9 or "
        "labels-per-class=1,5,25. Repeatable: one column of panels for every combination.",
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
def sweep(
    target: str,
    sources: tuple[str, ...],
    temperatures: tuple[float, ...],
    alphas: tuple[float, ...],
    vary: dict[str, tuple[Any, ...]],
    aux_loss: str | None,
    seeds: int,
    recipe: str,
    epochs: int | None,
    student_amp: str,
    out: Path | None,
    as_json: bool,
    **what: Any,
) -> None:
    """Train over chosen settings, and plot the accuracy.

    The picture is that of the paper's figure 4; with --vary transfer-module=no,yes, all of it. All runs read
    the same stores. Finished runs are skipped and stopped ones go on.
    """
    from pipeline import api
    from pipeline.data import target_slug
    from sskt.sources import split_names

    require_once(vary)
    grid = api.Grid(tuple(split_names(names) for names in sources), temperatures, alphas, vary, seeds)
    out = out or Path("runs") / f"sweep-{target_slug(target)}"
    overrides = {"recipe": recipe, "epochs": epochs, "aux_loss": aux_loss}
    overrides = {name: value for name, value in overrides.items() if name not in vary}
    rows = api.sweep(target, grid, out=out, amp=student_amp, overrides=overrides, **what)
    show(rows, as_json, " ".join(rows[0]))
    if not as_json:
        for path in sorted(out.glob("sweep.*")):
            tell(str(path))


@click.command()
@options(
    click.argument("runs", nargs=-1, required=True),
    click.option(
        "--picture",
        "image",
        type=FILE,
        help="An image file. [default: a test sample]",
    ),
    count_option("--sample", "Id of a test sample of the first run. [default: the first]", low=0),
    text_option("--class", "Class to map. [default: each student's own answer]", name="class_name"),
    click.option(
        "--out",
        type=FILE,
        default=Path("explain.png"),
        show_default=True,
        help="PNG file to write.",
    ),
    as_argument("execution", build_execution, *HOW),
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
