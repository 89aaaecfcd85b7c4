"""Stage one's commands: prepare and precompute."""

from __future__ import annotations

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
    SHOWN,
    SPLIT,
    VIEWS,
    WEIGHTS,
    build_augmentation,
    build_execution,
    build_packing,
    build_paths,
    build_targets,
    choice_option,
    count_option,
    options,
    section,
    together,
)
from pipeline.commands.output import show

if TYPE_CHECKING:
    from pipeline.data.datasets.video.pack import Packing
    from pipeline.runtime.paths import Paths


def _count_or_auto(_ctx: click.Context, _option: click.Parameter, text: str) -> int | None:
    """A number of at least 1; None for auto."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise click.BadParameter(f"{text!r} is neither auto nor a number of at least 1")
    return int(text)


@click.command()
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
    together("paths", build_paths, DATA_DIR, CACHE_DIR),
    JSON,
)
def prepare(
    targets: list[str],
    allow_missing: bool,
    packing: Packing,
    paths: Paths,
    as_json: bool,
) -> None:
    """Download and check a target; pack its videos.

    Official archives are fetched if they are not there; of folders, every picture is checked and indexed. Of
    videos, every frame is decoded once and packed under --cache-dir. Stopped half-way, it goes on from there.
    """
    from pipeline import api

    rows = [
        row
        for name in targets
        for row in api.prepare(name, paths=paths, packing=packing, allow_missing=allow_missing)
    ]
    show(rows, as_json, "target split samples classes contents")


@click.command(cls=Sectioned)
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
    together("paths", build_paths, section(PLACES, WEIGHTS, CONTRACT, DATA_DIR, CACHE_DIR)),
)
def precompute(estimate: bool, as_json: bool, **what: Any) -> None:
    """Stage one: keep what sources say of a target.

    Every planned view of every training picture is drawn once and shown to each source. Stop at any time:
    the same command goes on from there, and more --views or another --source extend what is kept. Start it
    several times at once, and the processes share the work; not under torchrun, which ends all when one dies.
    """
    from pipeline import api

    if estimate:
        rows = api.estimate(**what)
        show(
            rows,
            as_json,
            "target source rows bytes bytes_per_row draw_img_s forward_img_s write_mb_s hours pays_after",
        )
        return
    rows = [report.to_dict() for report in api.precompute(**what)]
    show(rows, as_json, "source n_samples n_classes views rows_done images_s nbytes path")
