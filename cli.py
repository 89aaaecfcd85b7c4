"""The front door: each command parses, calls one function of the pipeline, and prints what came out.

Nothing heavy is imported before a command needs it. Stage two's commands and the cache group lie in
commands/, with what all of them share.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from commands.front import FrontDoor, Sectioned
from commands.options import (
    CACHE_DIR,
    CONTRACT,
    DATA_DIR,
    EXECUTION,
    HOW,
    JSON,
    LIMIT,
    PLACES,
    SHOWN,
    SPLIT,
    THREADS,
    VIEWS,
    WEIGHTS,
    build_augmentation,
    build_execution,
    build_packing,
    build_places,
    build_targets,
    choice_option,
    count_option,
    folder_option,
    options,
    section,
    together,
)
from commands.output import say, show
from commands.papers import explain, recipes, reproduce, sweep
from commands.stores import cache
from commands.training import evaluate, train

if TYPE_CHECKING:
    from pipeline.data.datasets.video.pack import Packing
    from pipeline.runtime.paths import Places


def _count_or_auto(_ctx: click.Context, _option: click.Parameter, text: str) -> int | None:
    """A number of at least 1; None for auto."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise click.BadParameter(f"{text!r} is neither auto nor a number of at least 1")
    return int(text)


@click.group(
    cls=FrontDoor, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(package_name="sskt")
def main() -> None:
    """Pay for the teachers once: keep what frozen networks say of your data, then train any student with it.

    \b
    sskt demo                                          see it work: no download, three minutes
    sskt precompute --source places365 --target stl10  stage one: what the source says, once
    sskt train --target stl10                          stage two: a student, taught from the store
    """  # noqa: D301  (click's mark for "do not rewrap" is the character, not the two signs)


@main.command()
@options(
    CACHE_DIR,
    folder_option("--out", None, "Folder of the report. [default: runs/demo-<time>]"),
    count_option("--seeds", "Students per method.", 3),
    THREADS,
    JSON,
)
def demo(cache_dir: str, out: Path | None, seeds: int, threads: int, as_json: bool) -> None:
    """See both stages work on handwritten digits.

    Few labels, one student, three ways: from scratch, SSKT with cached logits, SSKT with the live sources.
    The sources are trained on drawn letters and strokes at the first run and kept. Writes a report.
    """
    from pipeline.demo import run_demo
    from pipeline.run import new_run_folder

    out = out or new_run_folder("demo")
    result = run_demo(cache_dir=Path(cache_dir), out=out, seeds=seeds, threads=threads, say=say)
    click.echo(json.dumps(result, indent=2) if as_json else result["table"])


@main.command()
@options(
    together(
        "targets",
        build_targets,
        click.option("--target", "targets", multiple=True, required=True, help="Repeatable."),
        SPLIT,
    ),
    click.option("--allow-missing", is_flag=True, help="Go on without files that are missing or damaged."),
    together(
        "packing",
        build_packing,
        count_option("--short-side", "Packed frames: short side in pixels.", 128, low=16, name="short_px"),
        count_option("--quality", "Packed frames: JPEG quality, at most 100.", 90, high=100),
    ),
    together("places", build_places, DATA_DIR, CACHE_DIR),
    JSON,
)
def prepare(
    targets: list[str],
    allow_missing: bool,
    packing: Packing,
    places: Places,
    as_json: bool,
) -> None:
    """Download and check a target; pack its videos.

    Official archives are fetched if they are not there; of folders, every picture is checked and indexed. Of
    videos, every frame is decoded once and packed under --cache-dir. Stopped half-way, it goes on from there.
    """
    from pipeline.api import run_prepare

    rows = [
        row
        for name in targets
        for row in run_prepare(name, places=places, say=say, packing=packing, allow_missing=allow_missing)
    ]
    show(rows, as_json, "target split samples classes contents")


@main.command(cls=Sectioned)
@options(
    click.option(
        "--source",
        "sources",
        multiple=True,
        required=True,
        help="imagenet, places365, imagenet:ARCH, kinetics:ARCH, program:FILE.pt2 or run:FOLDER. Repeatable.",
    ),
    together(
        "targets",
        build_targets,
        click.option(
            "--target",
            "targets",
            multiple=True,
            help="Repeatable. [default: every target prepared under --data-dir]",
        ),
        SPLIT,
    ),
    count_option("--views", "Augmented views of every sample.", 10),
    LIMIT,
    count_option(
        "--top-k",
        "Keep the K largest logits and the tail's sum; 0: all. [default: all, 64 beyond 100 GB a store]",
        low=0,
    ),
    click.option(
        "--estimate", is_flag=True, help="Measure for some seconds what it would cost; make nothing."
    ),
    JSON,
    together(
        "augmentation",
        build_augmentation,
        section(
            VIEWS,
            count_option("--seed", "Seed of the augmentation plan.", 0, low=0, name="plan_seed"),
            *SHOWN,
        ),
    ),
    together(
        "execution",
        build_execution,
        section(
            EXECUTION,
            choice_option(
                "--amp",
                "auto fp32 bf16 fp16",
                "auto",
                "Precision of the sources; auto: as the store has it, a new one fp16 on CUDA, else fp32.",
            ),
            click.option(
                "--batch-size",
                default="auto",
                show_default=True,
                callback=_count_or_auto,
                help="Rows of one forward; auto: 16 on a CPU, on CUDA what is measured to be fastest.",
            ),
            click.option(
                "--compile/--no-compile",
                "compiled",
                default=None,
                help="Compile the sources. [default: for 10,000 pictures and more]",
            ),
            *HOW,
        ),
    ),
    together("places", build_places, section(PLACES, WEIGHTS, CONTRACT, DATA_DIR, CACHE_DIR)),
)
def precompute(estimate: bool, as_json: bool, **what: Any) -> None:
    """Stage one: keep what sources say of a target.

    Every planned view of every training picture is drawn once and shown to each source. Stop at any time:
    the same command goes on from there, and more --views or another --source extend what is kept. Start it
    several times at once, and the processes share the work; not under torchrun, which ends all when one dies.
    """
    from pipeline.api import run_estimate, run_precompute

    if estimate:
        rows = run_estimate(**what, say=say)
        show(
            rows,
            as_json,
            "target source rows bytes bytes_per_row draw_img_s forward_img_s write_mb_s hours pays_after",
        )
        return
    rows = [report.to_dict() for report in run_precompute(**what, say=say)]
    show(rows, as_json, "source n_samples n_classes views rows_done images_s nbytes path")


@main.command()
@options(click.argument("name", required=False), JSON)
def sources(name: str | None, as_json: bool) -> None:
    """List the sources, or show what NAME wants and returns.

    NAME is a listed source, program:FILE.pt2 or run:FOLDER; nothing is downloaded.
    """
    from pipeline.tables import source_fields, source_rows

    if name is None:
        show(source_rows(), as_json, "source architecture classes weights")
        return
    fields = source_fields(name)
    if as_json:
        click.echo(json.dumps(fields, indent=2))
    else:
        show([{"field": k, "value": v} for k, v in fields.items()], as_json, "field value")


@main.command()
@options(together("places", build_places, DATA_DIR, CACHE_DIR), JSON)
def targets(places: Places, as_json: bool) -> None:
    """List the targets, and which are prepared."""
    from pipeline.tables import target_rows

    show(target_rows(places), as_json, "target classes student_px source_px plan model prepared")


for command in (train, evaluate, cache, recipes, reproduce, sweep, explain):
    main.add_command(command)


if __name__ == "__main__":
    main()
