"""Stage one's commands: prepare and precompute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.config_file import config_option
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
    UNLABELLED,
    VIEWS,
    WEIGHTS,
    as_argument,
    build_augmentation,
    build_execution,
    build_packing,
    build_paths,
    build_targets,
    choice_option,
    count_option,
    options,
    section,
)
from pipeline.commands.output import show

if TYPE_CHECKING:
    from pipeline.data import Packing
    from pipeline.runtime import Paths


def _count_or_auto(_ctx: click.Context, _option: click.Parameter, text: str) -> int | None:
    """A number of at least 1; None for auto."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise click.BadParameter(f"{text!r} is neither auto nor a number of at least 1")
    return int(text)


@click.command()
@options(
    as_argument(
        "targets",
        build_targets,
        click.option("--target", "targets", multiple=True, required=True, help="Repeatable."),
        SPLIT,
    ),
    click.option(
        "--pack",
        default=None,
        metavar="DIRECTORY|URL",
        help="Also pack the images into tar shards there, such as s3://bucket/scenes, for --target tar:URL.",
    ),
    click.option("--allow-missing", is_flag=True, help="Continue without files that are missing or damaged."),
    as_argument(
        "packing",
        build_packing,
        count_option("--short-side", "Short side of packed frames in pixels.", 128, low=16, name="short_px"),
        count_option("--quality", "JPEG quality of packed frames, at most 100.", 90, high=100),
        count_option("--every", "Pack one of N frames. [default: 1; of ccv, whose videos are long, 5]"),
    ),
    as_argument("paths", build_paths, DATA_DIR, CACHE_DIR),
    JSON,
)
def prepare(
    targets: list[str],
    pack: str | None,
    allow_missing: bool,
    packing: Packing,
    paths: Paths,
    as_json: bool,
) -> None:
    """Download and check a target; pack its videos or images.

    Official archives are downloaded if they are missing. In folders, every image is checked and indexed.
    Videos are decoded once and packed under --cache-dir. If stopped, it continues from there.
    """
    from pipeline import api

    rows = [
        row
        for name in targets
        for row in api.prepare(name, paths=paths, packing=packing, allow_missing=allow_missing, pack=pack)
    ]
    show(rows, as_json, "target split samples classes contents")


class _Precompute(Sectioned):
    def invoke(self, ctx: click.Context) -> Any:
        """With --engine ray, connect first, so that workers import torch while this process does."""
        if ctx.params["engine"] == "ray" and not ctx.params["estimate"]:
            from pipeline.precompute.ray_cluster import connected_early

            ctx.with_resource(connected_early("pipeline.api"))
        return super().invoke(ctx)


@click.command(cls=_Precompute)
@options(
    click.option(
        "--source",
        "sources",
        multiple=True,
        required=True,
        help="imagenet, places365, imagenet:ARCH, kinetics:ARCH, timm:NAME, hf:REPO-OR-FOLDER, onnx:FILE, "
        "program:FILE.pt2 or run:FOLDER; with an output of its own: imagenet@pooled. Repeatable.",
    ),
    click.option(
        "--output",
        multiple=True,
        default=("logits",),
        show_default=True,
        help="What to store of sources whose names do not say: logits; pooled, the input of a network's last "
        "linear layer; layerN:G, the maps of layer N averaged to G x G (layerN: 6 x 6); embedding, the "
        "vector that a network without a classifier returns. Repeatable; all come from one forward.",
    ),
    as_argument(
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
    UNLABELLED,
    count_option("--views", "Augmented views per sample.", 10),
    LIMIT,
    count_option(
        "--top-k",
        "Store the K largest logits and the sum of the rest; 0: all. "
        "[default: all; 64 beyond 100 GB per store]",
        low=0,
    ),
    click.option(
        "--estimate", is_flag=True, help="Measure for a few seconds what it would cost, and store nothing."
    ),
    config_option(
        "Settings file of sskt train, of which what stores depend on is read. Options on the command line "
        "win.",
        stage_one=True,
    ),
    JSON,
    as_argument(
        "augmentation",
        build_augmentation,
        section(
            VIEWS,
            count_option("--seed", "Seed of the augmentation plan.", 0, low=0, name="plan_seed"),
            *SHOWN,
        ),
    ),
    as_argument(
        "execution",
        build_execution,
        section(
            EXECUTION,
            choice_option(
                "--amp",
                "auto fp32 bf16 fp16",
                "auto",
                "Precision of the sources; auto: the store's own; for a new store fp16 on CUDA, else fp32.",
            ),
            click.option(
                "--batch-size",
                default="auto",
                show_default=True,
                callback=_count_or_auto,
                help="Images per forward; auto: 16 on a CPU, on CUDA the fastest as measured.",
            ),
            click.option(
                "--compile/--no-compile",
                "compiled",
                default=None,
                help="Compile the sources. [default: from 10,000 forwards on]",
            ),
            *HOW,
        ),
    ),
    section(
        EXECUTION,
        choice_option(
            "--engine",
            "local ray",
            "local",
            "local: in this process. ray: on the Ray cluster of RAY_ADDRESS, or one on this machine "
            "(needs sskt[ray]).",
        ),
        count_option(
            "--workers", "Workers at a time, with --engine ray. [default: one per GPU, else per node]"
        ),
    ),
    as_argument("paths", build_paths, section(PLACES, WEIGHTS, CONTRACT, DATA_DIR, CACHE_DIR)),
)
def precompute(estimate: bool, as_json: bool, **what: Any) -> None:
    """Stage one: store what frozen sources say of a target.

    Each source is run once on every planned view of every training image. Stop at any time: the same command
    continues from there, and more --views or another --source extend the stores. Processes share the work
    with --engine ray, or if each has a RANK of WORLD_SIZE; not under torchrun, which ends all when one dies.
    """
    from pipeline import api
    from pipeline.runtime import ask_for_large_pages

    ask_for_large_pages()
    if estimate:
        if what.pop("engine") != "local" or what.pop("workers"):
            raise click.UsageError("--estimate measures this machine; leave out --engine and --workers")
        rows = api.estimate(**what)
        show(
            rows,
            as_json,
            "target source rows bytes bytes_per_row draw_img_s forward_img_s write_mb_s hours pays_after",
        )
        return
    rows = [report.to_dict() for report in api.precompute(**what)]
    show(rows, as_json, "source n_samples n_classes views rows_done images_s nbytes path")
