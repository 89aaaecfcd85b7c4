"""The command that trains encoders on videos alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.front import Sectioned
from pipeline.commands.options import (
    CACHE_DIR,
    DATA_DIR,
    EXECUTION,
    HOW,
    JSON,
    LIMIT,
    PLACES,
    SPLIT,
    as_argument,
    build_augmentation,
    build_execution,
    build_paths,
    build_targets,
    choice_option,
    count_option,
    number_option,
    options,
    section,
)
from pipeline.commands.output import new_run_folder, tell, tell_json
from pipeline.commands.told import paths_of, require_alone

if TYPE_CHECKING:
    from pipeline.runtime import Execution, Paths

_TASKS = ("sorting", "egomotion", "tracking", "prediction")
_OF_TASK = "[default: the task's]"


@click.command(cls=Sectioned)
@options(
    click.option(
        "--task",
        "tasks",
        multiple=True,
        type=click.Choice([*_TASKS, "all"]),
        help="sorting: the order of four frames; egomotion: whether two frames are close in time; tracking: "
        "one thing at two moments among others; prediction: the next frame. Repeatable; all: one after the "
        "other.",
    ),
    as_argument(
        "targets",
        build_targets,
        click.option(
            "--target",
            "targets",
            multiple=True,
            help="Videos to learn from, whose labels are not read: ucf101, hmdb51 or videofolder:PATH. "
            "Repeatable.",
        ),
        SPLIT,
    ),
    click.option(
        "--small",
        is_flag=True,
        help="Take the task's small network, for trials: vgg19-sorting-small and so on.",
    ),
    count_option("--epochs", f"Length of the training, in examples of every video. {_OF_TASK}"),
    count_option("--batch-size", f"Videos per step, over all processes. {_OF_TASK}"),
    number_option("--lr", f"Initial learning rate. {_OF_TASK}"),
    LIMIT,
    count_option("--seed", "Seed of initial weights and order.", 0, low=0),
    click.option(
        "--out",
        default=None,
        metavar="DIRECTORY|URL",
        help="Run folder; of several tasks, the folder of their runs, in which finished ones are skipped and "
        "stopped ones continued. [default: runs/pretext-<task>-<target>-<time>]",
    ),
    click.option(
        "--resume",
        default=None,
        metavar="DIRECTORY|URL",
        help="Continue the run in this folder instead of starting one.",
    ),
    JSON,
    section(
        "Videos",
        number_option(
            "--val-share",
            "Fraction of the training videos that is held out for the figures. [default: 0.1; none where a "
            "val split is]",
        ),
        count_option("--size", "Side in pixels of what the network sees. [default: 112]", name="side_px"),
        count_option("--plan-seed", "Seed of what is drawn from each video.", 0, low=0),
        count_option("--eval-every", "Epochs between two looks at the held-out videos.", 1),
    ),
    as_argument("execution", build_execution, section(EXECUTION, *HOW)),
    section(
        EXECUTION,
        choice_option(
            "--amp", "auto fp32 bf16 fp16", "auto", "Precision; auto: bf16 where that is faster than fp32."
        ),
    ),
    as_argument("paths", build_paths, section(PLACES, DATA_DIR, CACHE_DIR)),
)
def pretext(
    tasks: tuple[str, ...],
    targets: list[str],
    small: bool,
    out: str | None,
    resume: str | None,
    as_json: bool,
    side_px: int | None,
    plan_seed: int,
    execution: Execution,
    paths: Paths,
    **settings: Any,
) -> None:
    """Train encoders on videos alone, each by one pretext task.

    Graph distillation's teachers begin so. The next command fine-tunes one on labels: sskt train --method
    scratch --model vgg19-sorting --finetune-from RUN/encoder.safetensors; --source run:FOLDER then names what
    that has trained.
    """
    from pipeline import api

    if resume is not None:
        require_alone("resume device renderer threads data_dir cache_dir as_json")
        summaries = [api.resume(resume, execution=execution, paths=paths_of(resume)) | {"run": str(resume)}]
    elif tasks and targets:
        augmentation = build_augmentation(plan_seed, None, side_px=side_px)
        settings |= {"execution": execution, "paths": paths, "augmentation": augmentation}
        summaries = _train(_TASKS if "all" in tasks else tasks, targets, out, small, settings)
    else:
        missing = "--target" if tasks else "--task"
        raise click.UsageError(f"Missing option '{missing}', or '--resume' to continue a run.")
    if as_json:
        tell_json(summaries)
    else:
        for summary in summaries:
            tell(summary["run"])


def _train(
    tasks: tuple[str, ...], targets: list[str], out: str | None, small: bool, settings: dict[str, Any]
) -> list[dict[str, Any]]:
    """Train the encoder of each task; returns their summaries."""
    from cache import location
    from pipeline import api
    from pipeline.data import target_slug
    from sskt.recipes import recipe_for

    found = []
    for task in dict.fromkeys(tasks):
        model = recipe_for(targets[0], task).models[small]
        if out is not None and len(tasks) > 1:
            own = location(out) / task
            found.append(api.pretext_or_resume(targets, task=task, model=model, out=own, **settings))
            continue
        folder = out or new_run_folder(f"pretext-{task}-{target_slug(targets[0])}")
        found.append(api.pretext(targets, task=task, model=model, out=folder, **settings))
    return found
