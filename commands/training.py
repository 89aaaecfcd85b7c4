"""Stage two's commands: train and evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from commands.options import (
    CACHE_DIR,
    DATA_DIR,
    HOW,
    JSON,
    LIMIT,
    SHOWN,
    WEIGHTS,
    build_augmentation,
    build_execution,
    build_places,
    choice_option,
    count_option,
    folder_option,
    number_option,
    options,
    text_option,
    together,
)
from commands.output import say, show

if TYPE_CHECKING:
    from pipeline.api import Supervision
    from pipeline.choices import Places
    from pipeline.execution import Execution

_OF_RECIPE = "[default: the recipe's]"


def _supervision(**values: Any) -> Supervision:
    from pipeline.api import Supervision

    return Supervision(**values)


def _epochs(_ctx: click.Context, _option: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """60,120 as numbers."""
    try:
        return None if text is None else tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of epochs such as 60,120") from None


@click.command()
@options(
    text_option(
        "--target", "cifar10, cifar100, stl10, imagenet, places365, digits, imagefolder:PATH.", required=True
    ),
    text_option("--model", f"resnet20, resnet32, resnet44, resnet18, resnet34, resnet50. {_OF_RECIPE}"),
    together(
        "supervision",
        _supervision,
        choice_option("--method", "sskt scratch", "sskt", "With sources, or on labels alone."),
        click.option(
            "--source",
            "sources",
            multiple=True,
            help="Repeatable. [default: every source with a complete store for the target]",
        ),
        choice_option(
            "--labels",
            "auto cached live",
            "auto",
            "Logits from the store, or from the sources in every step.",
        ),
        count_option(
            "--views", "Views to go through in turn. [default: all stored; live: a new one each epoch]"
        ),
        click.option(
            "--transfer-module/--no-transfer-module",
            default=False,
            show_default=True,
            help="Source heads that see every block, or the last feature only.",
        ),
        choice_option(
            "--kd-reduction", "mean batchmean", "mean", "mean = over batch and classes, as released."
        ),
    ),
    together(
        "overrides",
        dict,
        choice_option("--aux-loss", "ce kd", None, f"Loss of the source heads. {_OF_RECIPE}"),
        number_option("--temperature", f"Softens the sources' logits. {_OF_RECIPE}"),
        number_option("--alpha", f"Weight of the auxiliary losses. {_OF_RECIPE}", positive=False),
        count_option("--epochs", _OF_RECIPE),
        count_option("--batch-size", _OF_RECIPE),
        number_option("--lr", _OF_RECIPE),
        text_option(
            "--milestones", f"Epochs at which the rate drops. {_OF_RECIPE}", metavar="E,E", callback=_epochs
        ),
        number_option("--gamma", f"Factor of a drop. {_OF_RECIPE}"),
        number_option("--weight-decay", _OF_RECIPE, positive=False),
    ),
    count_option("--seed", "Seed of initial weights and order.", 0, low=0),
    together(
        "augmentation",
        build_augmentation,
        count_option("--plan-seed", "Seed of the augmentation plan: precompute's --seed.", 0, low=0),
        *SHOWN,
    ),
    LIMIT,
    choice_option(
        "--amp", "auto fp32 bf16", "auto", "Precision of the student; auto: bf16 on CUDA, else fp32."
    ),
    count_option("--eval-every", "Epochs between two looks at the test split.", 1),
    together("execution", build_execution, *HOW),
    folder_option("--out", None, "Run folder. [default: runs/<target>-<method>-<time>]"),
    together("places", build_places, WEIGHTS, DATA_DIR, CACHE_DIR),
    JSON,
)
def train(target: str, amp: str, execution: Execution, out: Path | None, as_json: bool, **what: Any) -> None:
    """Stage two: train a student, taught by sources.

    It learns its own labels and, in one auxiliary head per source, what the source said of the same pixels.
    What is not given is the paper's recipe for the target (table 1).
    """
    from pipeline.api import run_train
    from pipeline.choices import student_precision
    from pipeline.run import new_run_folder
    from pipeline.targets.spec import target_slug

    out = out or new_run_folder(f"{target_slug(target)}-{what['supervision'].method}")
    student_amp = student_precision(execution) if amp == "auto" else amp
    summary = run_train(target, execution=execution, student_amp=student_amp, out=out, say=say, **what)
    click.echo(json.dumps(summary | {"run": str(out)}, indent=2) if as_json else str(out))


@click.command()
@options(
    click.argument("run", type=click.Path(path_type=Path)),
    together("execution", build_execution, *HOW),
    together("places", build_places, DATA_DIR, CACHE_DIR),
    JSON,
)
def evaluate(run: Path, execution: Execution, places: Places, as_json: bool) -> None:
    """Score a run's student on the test split."""
    from pipeline.api import run_evaluate

    figures = run_evaluate(run, places=places, execution=execution, say=say)
    if as_json:
        click.echo(json.dumps(figures, indent=2))
        return
    by_class = figures.pop("class_top1")
    show([figures], as_json, " ".join(figures))
    show([{"class": name, "top1": value} for name, value in by_class.items()], as_json, "class top1")
