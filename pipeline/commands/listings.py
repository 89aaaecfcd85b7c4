"""The commands that list: sources, targets and recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline.commands.options import CACHE_DIR, DATA_DIR, JSON, as_argument, build_paths, options
from pipeline.commands.output import show, tell_json

if TYPE_CHECKING:
    from pipeline.runtime import Paths


@click.command()
@options(click.argument("name", required=False), JSON)
def sources(name: str | None, as_json: bool) -> None:
    """List the sources, or show what NAME expects and returns.

    NAME is a listed source, or such as timm:resnet50, hf:REPO-OR-FOLDER, onnx:FILE, program:FILE.pt2 or
    run:FOLDER; nothing is downloaded.
    """
    from pipeline.commands.rows import source_fields, source_rows

    if name is None:
        show(source_rows(), as_json, "source architecture classes weights")
        return
    fields = source_fields(name)
    if as_json:
        tell_json(fields)
    else:
        show([{"field": k, "value": v} for k, v in fields.items()], as_json, "field value")


@click.command()
@options(as_argument("paths", build_paths, DATA_DIR, CACHE_DIR), JSON)
def targets(paths: Paths, as_json: bool) -> None:
    """List the targets, and which of them are prepared."""
    from pipeline.commands.rows import target_rows

    show(target_rows(paths), as_json, "target classes student_px source_px plan model prepared")


@click.command()
@options(JSON)
def recipes(as_json: bool) -> None:
    """List the training recipes: the paper's, ours and fast ones."""
    from pipeline.commands.rows import recipe_rows

    columns = "target recipe models epochs batch_size lr finetune_lr schedule milestones gamma patience"
    show(recipe_rows(), as_json, f"{columns} weight_decay ema loss aux_loss temperature alpha paper")
