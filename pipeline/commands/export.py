"""The command that writes a finished run's student for other programs."""

from __future__ import annotations

import click

from pipeline.commands.options import BEST, CACHE_DIR, DATA_DIR, JSON, MOVED, choice_option, options
from pipeline.commands.output import show, tell, tell_json
from pipeline.commands.told import paths_of


@click.command()
@options(
    click.argument("run"),
    choice_option("--format", "onnx pt2 safetensors", None, "Kind of file.", required=True),
    click.option(
        "--out",
        metavar="FILE|URL",
        help="File to write. [default: exported.FORMAT in the run's folder]",
    ),
    BEST,
    MOVED,
    DATA_DIR,
    CACHE_DIR,
    JSON,
)
def export(
    run: str,
    format: str,  # noqa: A002 - the option's name
    out: str | None,
    best: bool,
    target: str | None,
    as_json: bool,
    **_told: object,
) -> None:
    """Write a run's student to a file that other programs read.

    The network takes RGB images from 0 to 1, float32 N x 3 x SIDE x SIDE (videos: N x 3 x FRAMES x SIDE x
    SIDE), normalises them itself, and returns logits, for any N. A .safetensors file holds the weights alone.

    The metadata hold sskt_contract (JSON: classes, size, crop, interpolation, range and so on), model,
    probabilities (softmax or sigmoid: what makes them of logits), weights_sha256 and, for videos, clip. ONNX
    and safetensors also have classes, a JSON list; in a .pt2 they are sskt_contract.json and sskt_notes.json.

    The file is read back and compared with the run, in fp32, on 32 images of its test split. If probabilities
    differ by more than 0.0001, or logits by that share of the largest, nothing is written. A .pt2 can teach:
    sskt train --source program:FILE. --format onnx needs pip install 'sskt[onnx]'.

    --json prints file, format, input, images, same_class (how many get the run's class),
    max_difference (of probabilities), max_logit_difference and max_logit.
    """
    from pipeline import api

    which = "best" if best else "last"
    written = api.export(run, format=format, out=out, paths=paths_of(run), target=target, which=which)
    if as_json:
        tell_json(written)
        return
    show([written], as_json, "format input images same_class max_difference max_logit_difference")
    tell(written["file"])
