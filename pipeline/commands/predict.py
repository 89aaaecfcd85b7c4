"""The commands that use a finished run's student: on files, and in other programs."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.option_kinds import as_argument, choice_option, options
from pipeline.commands.options import BEST, CACHE_DIR, CLIPS, DATA_DIR, HOW, JSON, MOVED, build_execution
from pipeline.commands.output import say, show, tell, tell_json
from pipeline.commands.told import paths_of

if TYPE_CHECKING:
    from pipeline.runtime import Execution
    from pipeline.train.finished.predict import Predictions

_UNUSABLE = 1  # the exit status where some files have no prediction


@click.command()
@options(
    click.argument("run", type=click.Path(path_type=Path)),
    click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path)),
    CLIPS,
    BEST,
    as_argument("execution", build_execution, *HOW),
    MOVED,
    DATA_DIR,
    CACHE_DIR,
    click.option("--csv", "as_csv", is_flag=True, help="Print CSV, with the probability of every class."),
    JSON,
)
def predict(
    run: Path,
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
        say(f"{len(errors):,} of {len(found.files):,} files have no prediction")
        raise click.exceptions.Exit(_UNUSABLE)


@click.command()
@options(
    click.argument("run", type=click.Path(path_type=Path)),
    choice_option("--format", "onnx pt2 safetensors", None, "Kind of file.", required=True),
    click.option(
        "--out",
        type=click.Path(path_type=Path, dir_okay=False),
        help="File to write. [default: exported.FORMAT in the run's folder]",
    ),
    BEST,
    MOVED,
    DATA_DIR,
    CACHE_DIR,
    JSON,
)
def export(
    run: Path,
    format: str,  # noqa: A002 - the option's name
    out: Path | None,
    best: bool,
    target: str | None,
    as_json: bool,
    **_told: Any,
) -> None:
    """Write a run's student to a file that other programs read.

    The network takes RGB images from 0 to 1, float32 N x 3 x SIDE x SIDE (videos: N x 3 x FRAMES x SIDE x
    SIDE), normalises them itself, and returns logits, for any N. A .safetensors file holds the weights alone.

    The metadata hold sskt_contract (JSON: classes, size, crop, interpolation, range and so on), model,
    probabilities (softmax or sigmoid: what makes them of logits), weights_sha256 and, for videos, clip. ONNX
    and safetensors also have classes, a JSON list; in a .pt2 they are sskt_contract.json and sskt_notes.json.

    The file is read back and compared with the run on 32 images of its test split. If probabilities differ by
    more than 0.0001, or logits by that share of the largest, nothing is written. Prints the largest
    differences. A .pt2 can teach: sskt train --source program:FILE. --format onnx needs pip install
    'sskt[onnx]'.
    """
    from pipeline import api

    which = "best" if best else "last"
    written = api.export(run, format=format, out=out, paths=paths_of(run), target=target, which=which)
    if as_json:
        tell_json(written)
        return
    show([written], as_json, "format input images same_class max_difference max_logit_difference")
    tell(written["file"])


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
