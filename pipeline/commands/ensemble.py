"""The command that joins several runs to one classifier."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.options import (
    CACHE_DIR,
    CLIPS,
    DATA_DIR,
    HOW,
    JSON,
    MOVED,
    as_argument,
    build_execution,
    folder_option,
    options,
)
from pipeline.commands.output import show, tell
from pipeline.commands.told import paths_of

if TYPE_CHECKING:
    from pipeline.runtime import Execution


@click.command()
@options(
    click.argument("runs", nargs=-1, required=True),
    CLIPS,
    folder_option("--out", None, "Folder to write ensemble.json to. [default: it is not written]"),
    as_argument("execution", build_execution, *HOW),
    MOVED,
    DATA_DIR,
    CACHE_DIR,
    JSON,
)
def ensemble(
    runs: tuple[str, ...],
    clips: int | str,
    out: Path | None,
    execution: Execution,
    target: str | None,
    as_json: bool,
    **_told: Any,
) -> None:
    """Score several runs of one target together.

    fusion is the mean of their probabilities; linear is a logistic regression on the features that their
    heads read, fitted to the samples that they were trained on.
    """
    from pipeline import api

    rows = api.ensemble(
        runs, out=out, paths=paths_of(runs[0]), target=target, execution=execution, clips=clips
    )
    figures = [name for name in rows[0] if name not in ("what", "model")]
    show(rows, as_json, " ".join(["what", "model", *figures]))
    if out is not None and not as_json:
        tell(str(out / "ensemble.json"))
