"""The command that scores a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.option_kinds import as_argument, options, text_option
from pipeline.commands.options import CACHE_DIR, CLIPS, DATA_DIR, HOW, JSON, build_execution
from pipeline.commands.output import show, tell, tell_json
from pipeline.commands.told import paths_of

if TYPE_CHECKING:
    from pipeline.runtime import Execution


@click.command()
@options(
    click.argument("run", type=click.Path(path_type=Path)),
    CLIPS,
    click.option("--best", is_flag=True, help="Score the student of the best epoch instead of the last one."),
    as_argument("execution", build_execution, *HOW),
    text_option(
        "--target",
        "Where the dataset is now: imagefolder:PATH or videofolder:PATH. [default: as recorded]",
    ),
    DATA_DIR,
    CACHE_DIR,
    JSON,
)
def evaluate(
    run: Path,
    clips: int | str,
    best: bool,
    execution: Execution,
    target: str | None,
    as_json: bool,
    **_told: Any,
) -> None:
    """Score a run's student on the test split.

    Writes a confusion matrix into the run's folder. A video's answer is the mean over its clips. The data are
    looked for where the run found them, unless --target or --data-dir says otherwise.
    """
    from pipeline import api

    which = "best" if best else "last"
    figures = api.evaluate(
        run, paths=paths_of(run), target=target, execution=execution, which=which, clips=clips
    )
    if as_json:
        tell_json(figures)
        return
    by_class = figures.pop("classes")
    written = [figures.pop(name) for name in ("confusion_csv", "confusion_png") if name in figures]
    show([figures], as_json, " ".join(figures))
    kind = "ap" if "test_map" in figures else "top1"
    show([{"class": name, kind: value} for name, value in by_class.items()], as_json, f"class {kind}")
    for path in written:
        tell(path)
