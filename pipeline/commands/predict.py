"""The command that asks a finished run's student about files."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.options import JSON, PATH, SCORING, options
from pipeline.commands.output import say, show, tell, tell_json
from pipeline.commands.told import paths_of

if TYPE_CHECKING:
    from pipeline.runtime import Execution
    from pipeline.train.finished.predict import Predictions

_UNUSABLE = 1  # the exit status where some file(s) have no prediction


@click.command()
@options(
    click.argument("run"),
    click.argument("files", nargs=-1, required=True, type=PATH),
    SCORING,
    click.option("--csv", "as_csv", is_flag=True, help="Print CSV, with the probability of every class."),
    JSON,
)
def predict(
    run: str,
    files: tuple[Path, ...],
    clips: int | str,
    best: bool,
    execution: Execution,
    target: str | None,
    as_csv: bool,
    as_json: bool,
    **_told: Any,
) -> None:
    """Print what a run's student says of images or videos.

    FILES are files, or folders, of which everything below is taken. They are cropped, resized and normalised
    as the run's test split is, so predictions for that split are those that sskt evaluate scores. A video's
    answer is the mean over its clips.

    Columns: file, class (the most probable one) and probability (0 to 1); with several labels per image also
    classes, those of at least 0.5. --csv adds error, and a column p_NAME for every class; classes are
    separated by semicolons. --json prints one object: run; predictions, a list of objects with the columns
    above and probabilities by class name; and errors, a list of file and error.

    Files that cannot be read are named and counted on standard error. The others are predicted, and the exit
    status is 1.
    """
    if as_csv and as_json:
        raise click.UsageError("--csv and --json are two forms of one result; give one of them")
    from pipeline import api

    found = api.predict(
        run,
        files,
        paths=paths_of(run),
        target=target,
        execution=execution,
        which="best" if best else "last",
        clips=clips,
    )
    errors = found.errors()
    if as_json:
        tell_json({"run": str(run), "predictions": list(found.rows()), "errors": errors})
    elif as_csv:
        _tell_csv(found)
    else:
        show([_cells(row) for row in found.rows()], as_json, "file class probability classes")
    for bad in errors:
        say(f"{bad['file']}: has no prediction: {bad['error']}")
    if errors:
        say(f"{len(errors):,} of {len(found.files):,} file(s) have no prediction")
        raise click.exceptions.Exit(_UNUSABLE)


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    """A line of the table."""
    cells = {**row, "probability": f"{row['probability']:.4f}"}
    return cells | ({"classes": ", ".join(row["classes"]) or "none"} if "classes" in row else {})


def _tell_csv(found: Predictions) -> None:
    """Print a header and one line per file, in the order given."""
    first = ["file", "class", "probability", *(["classes"] if found.several else []), "error"]
    _tell_line([*first, *(f"p_{name}" for name in found.classes)])
    answers = found.rows()
    for row, file in enumerate(found.files):
        if (why := found.unusable.get(row)) is not None:
            _tell_line([str(file), *[""] * (len(first) - 2), why, *[""] * len(found.classes)])
            continue
        answer = next(answers)
        cells = [answer[name] for name in first if name not in ("classes", "error")]
        cells += [";".join(answer["classes"])] if found.several else []
        _tell_line([*cells, "", *answer["probabilities"].values()])


def _tell_line(cells: list[Any]) -> None:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    tell(line.getvalue())
