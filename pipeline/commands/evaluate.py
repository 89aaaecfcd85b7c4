"""The command that scores a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.options import JSON, SCORING, folder_option, options
from pipeline.commands.output import show, tell, tell_json
from pipeline.commands.told import paths_of

if TYPE_CHECKING:
    from pipeline.runtime import Execution


@click.command()
@options(
    click.argument("run"),
    folder_option(
        "--on",
        None,
        "Score it on this folder instead, whose class folders are named as the run's classes. "
        "[default: the target's test split]",
    ),
    SCORING,
    JSON,
)
def evaluate(
    run: str,
    on: Path | None,
    clips: int | str,
    best: bool,
    execution: Execution,
    target: str | None,
    as_json: bool,
    **_told: Any,
) -> None:
    """Score a run's student on the test split, or on another folder.

    Writes a confusion matrix into the run's folder. A video's answer is the mean over its clips. The data are
    looked for where the run found them, unless --target or --data-dir says otherwise.

    With --on, folders that are none of the run's classes and classes without a folder are named, and left
    out. Files that cannot be read are named and counted (n_unusable), and the exit status is 1.
    """
    from pipeline import api

    which = "best" if best else "last"
    figures = api.evaluate(
        run, on=on, paths=paths_of(run), target=target, execution=execution, which=which, clips=clips
    )
    _show(figures, as_json)
    if figures.get("n_unusable"):
        raise click.exceptions.Exit(1)


def _show(figures: dict[str, Any], as_json: bool) -> None:
    """Print the figures, and each class's."""
    if as_json:
        tell_json(figures)
        return
    figures = dict(figures)
    by_class = figures.pop("classes")
    written = [figures.pop(name) for name in ("confusion_csv", "confusion_png") if name in figures]
    show([figures], as_json, " ".join(figures))
    kind = "ap" if "test_map" in figures else "top1"
    show([{"class": name, kind: value} for name, value in by_class.items()], as_json, f"class {kind}")
    for path in written:
        tell(path)
