"""The cache group: list, inspect, check and prune stores."""

from __future__ import annotations

import sys
from typing import Any

import click

from pipeline.commands.options import (
    CACHE_DIR,
    DATA_DIR,
    FILE,
    HOW,
    JSON,
    as_argument,
    build_execution,
    build_paths,
    count_option,
    options,
    text_option,
)
from pipeline.commands.output import show, tell_json


@click.group()
def cache() -> None:
    """List, inspect, check and prune stores."""


@cache.command("ls")
@options(CACHE_DIR, JSON)
def cache_ls(cache_dir: str, as_json: bool) -> None:
    """List every store: target, source, sizes, views, bytes."""
    from cache.storage import location
    from pipeline.commands.rows import store_rows

    show(
        store_rows(location(cache_dir)),
        as_json,
        "target source output samples classes numbers student_px source_px top_k views units bytes path "
        "problem",
    )


@cache.command("info")
@options(click.argument("store"), JSON)
def cache_info(store: str, as_json: bool) -> None:
    """Show what a store depends on, holds and costs."""
    from cache.storage import location
    from pipeline.commands.rows import store_fields

    fields = store_fields(location(store))
    if as_json:
        tell_json(fields)
    else:
        show([{"field": k, "value": v} for k, v in fields.items()], as_json, "field value")


@cache.command("verify")
@options(
    click.argument("store"),
    count_option("--recompute", "Run the source again on N random rows and compare.", name="n_rows"),
    click.option("--repair", is_flag=True, help="Compute damaged units again, and nothing else."),
    text_option("--target", "Where the images are now. [default: as recorded]"),
    click.option(
        "--weights",
        type=FILE,
        help="Where the source's weights or program are now. [default: as recorded]",
    ),
    as_argument(
        "execution",
        build_execution,
        *HOW,
    ),
    as_argument("paths", build_paths, DATA_DIR, CACHE_DIR),
    count_option("--seed", "Seed of the random rows.", 0, low=0),
    JSON,
)
def cache_verify(store: str, as_json: bool, **what: Any) -> None:
    """Check a store's finished units, and its rows against the source.

    Checksum, shape, NaN and inf, manifest, tables. Exits with 1 if anything is wrong, and says how to mend
    it.
    """
    from cache.storage import location
    from pipeline import api

    report = api.verify(location(store), **what)
    if as_json:
        tell_json(report.to_dict())
    else:
        if report.problems:
            show(report.problems, as_json, "unit problem")
        if report.agreement:
            row = report.agreement.to_dict()
            show([row], as_json, "rows max_error mean_error min_cosine same_top identical worst")
        click.echo(report.verdict)
    if not report.good:
        sys.exit(1)


@cache.command("prune")
@options(
    click.argument("stores", nargs=-1),
    count_option("--views", "Keep the first N views of each STORE instead of removing it."),
    click.option("--dry-run", is_flag=True, help="List what would be removed; remove nothing."),
    click.option("--yes", is_flag=True, help="Do not ask for confirmation."),
    CACHE_DIR,
    JSON,
)
def cache_prune(
    stores: tuple[str, ...], views: int | None, dry_run: bool, yes: bool, cache_dir: str, as_json: bool
) -> None:
    """Free disk space.

    Without a STORE, removes what killed runs left behind in the cache folder; with some, removes these, or
    all their views beyond the first N.
    """
    from cache.pruning import plan_pruning, prune

    rows = plan_pruning(cache_dir, stores, views)
    if dry_run or not rows or not as_json:
        show(rows, as_json, "what bytes path")
    if not rows or dry_run:
        return
    if stores and not yes:
        click.confirm(f"remove these {len(rows)}?", abort=True, err=True)
    prune(rows, views)
    if as_json:
        show(rows, as_json, "")
