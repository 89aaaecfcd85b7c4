"""The command that trains a student, or continues a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

import click

from pipeline.commands.config_file import config_option, followers_of_config
from pipeline.commands.front import Sectioned
from pipeline.commands.graph_options import GRAPH
from pipeline.commands.options import (
    CACHE_DIR,
    CONTRACT,
    DATA_DIR,
    EXECUTION,
    FILE,
    HOW,
    JSON,
    LIMIT,
    PLACES,
    PLANNED,
    SPLIT,
    UNLABELLED,
    WEIGHTS,
    as_argument,
    build_execution,
    build_paths,
    build_target,
    choice_option,
    count_option,
    number_option,
    options,
    section,
    text_option,
)
from pipeline.commands.output import new_run_folder, tell, tell_json
from pipeline.commands.recipe_options import OF_RECIPE, RARELY, RECIPE
from pipeline.commands.show_settings import show_settings
from pipeline.commands.told import paths_of, require_alone

if TYPE_CHECKING:
    from pipeline.data import Augmentation
    from pipeline.runtime import Execution, Paths
    from pipeline.train.config import Settings


class ChoiceParamType(click.Choice[str]):
    """The methods of this program, and whatever was registered beside them (`sskt.methods.register`)."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ARG002
        """As it is: whoever looks for it knows all names."""
        return str(value)


_SOURCES = "Sources"
_LABELS = "Few labels"


@click.command(cls=Sectioned)
@options(
    as_argument(
        "target",
        build_target,
        text_option(
            "--target",
            "Dataset: cifar10, cifar100, stl10, imagenet, places365, voc, voc2007, ucf101, hmdb51, ccv, "
            "digits, imagefolder:PATH, list:FILE, tar:PATTERN, hf-dataset:PATH or videofolder:PATH.",
        ),
        SPLIT,
    ),
    click.option(
        "--source",
        "sources",
        multiple=True,
        help="A source to learn from: its logits or, as NAME@pooled or NAME@embedding, an embedding; probe, "
        "or probe:SOURCE+SOURCE, is a linear probe of the target's classes on stored rows. Repeatable. "
        "[default: every source with a whole view of logits stored for the target, except run:FOLDER; for kd "
        "and graph those of its classes]",
    ),
    click.option(
        "--method",
        type=ChoiceParamType(["sskt", "scratch", "kd", "dml", "maxl", "graph"]),
        default="sskt",
        show_default=True,
        help="sskt: auxiliary heads for the sources; scratch: labels alone; kd: distillation from teachers "
        "of the same task; dml: peers that teach one another; maxl: sub-classes that a second network makes "
        "up; graph: two or more teachers of the same task, weighed sample by sample.",
    ),
    text_option(
        "--model",
        "Student: resnet20, resnet18 and others; for clips resnet3d18, r3d_18; timm:NAME; or "
        "package.module:function, which returns any torch.nn.Module. Of videos, one for images sees the "
        f"centre frame of each clip. {OF_RECIPE}",
    ),
    count_option("--epochs", f"Length of the training. {OF_RECIPE}"),
    count_option("--batch-size", f"Images per step, over all processes. {OF_RECIPE}"),
    number_option(
        "--lr", "Initial learning rate. [default: the recipe's; 0.001 with --optimizer adam or adamw]"
    ),
    choice_option(
        "--preset",
        "paper best",
        None,
        "What to do where you say nothing: paper, SSKT as published; best, the fast recipe with a head per "
        "source, or with a probe of them where some samples have no label. "
        "[default: best for your own data without --recipe; else paper]",
    ),
    LIMIT,
    count_option("--seed", "Seed of initial weights and order.", 0, low=0),
    click.option(
        "--out",
        default=None,
        metavar="DIRECTORY|URL",
        help="Run folder, or the stopped run to continue. [default: runs/<target>-<method>-<time>]",
    ),
    click.option(
        "--resume",
        default=None,
        metavar="DIRECTORY|URL",
        help="Continue the run in this folder instead of starting one.",
    ),
    config_option(
        "YAML or JSON file of settings, by the names that sskt config prints; a run's config.json repeats "
        "that run. Options on the command line win."
    ),
    click.option(
        "--tracker",
        "trackers",
        multiple=True,
        type=click.Choice(["wandb", "mlflow", "trackio", "aim"]),
        help="Send settings and figures to an experiment tracker too; installed by sskt[NAME]. Repeatable.",
    ),
    JSON,
    section(
        _SOURCES,
        choice_option(
            "--labels",
            "auto cached live write-through",
            "auto",
            "Take logits from the store, ask the sources in every step, or ask once and store.",
        ),
        count_option(
            "--views",
            "Views to cycle through. [default: all stored, or 10; live: a new one each epoch]",
        ),
        click.option(
            "--transfer-module/--no-transfer-module",
            default=False,
            show_default=True,
            help="Let source heads see every block, or only the last feature.",
        ),
        choice_option(
            "--aux-loss",
            "ce kd focal cosine smooth-l1",
            None,
            f"Loss of the source heads; for embeddings cosine or smooth-l1. {OF_RECIPE}",
        ),
        choice_option(
            "--aux-head",
            "linear mlp",
            "linear",
            "Source heads without the transfer module: linear, or with a hidden layer.",
        ),
        number_option("--temperature", f"Temperature of the sources' logits. {OF_RECIPE}"),
        number_option(
            "--alpha",
            "Weight of the auxiliary losses. [default: the recipe's; 1 for cosine and smooth-l1]",
            positive=False,
        ),
        number_option(
            "--probe-weight",
            "sskt: share of the primary loss that follows the probe instead of the labels.",
            default=0.9,
            positive=False,
        ),
        number_option("--probe-temperature", "sskt: temperature of the probe's logits.", default=1.0),
        choice_option(
            "--probe-views",
            "mean own",
            None,
            "What the probe answers about: the mean over all stored views, or the view that is shown. "
            "[default: mean; with --preset best and live labels own]",
        ),
    ),
    section(
        _LABELS,
        UNLABELLED,
        click.option(
            "--labelled",
            "labelled_list",
            type=FILE,
            help="Text file of the training samples that keep their labels, one a line: paths below the "
            "target's folder, or ids. The others are trained on without. [default: all]",
        ),
        count_option(
            "--labels-per-class",
            "Keep the labels of N training samples per class, and train on the others without; scratch, dml "
            "and maxl leave them out. [default: all]",
        ),
        number_option(
            "--labelled-share",
            "Fraction of labelled samples in a batch. [default: theirs of all samples; sskt without a "
            "probe: at least 0.75]",
        ),
    ),
    GRAPH,
    RECIPE,
    section(
        EXECUTION,
        choice_option(
            "--amp",
            "auto fp32 bf16 fp16",
            "auto",
            "Precision of the student; auto: bf16 where that is faster than fp32.",
        ),
        click.option(
            "--compile", "compiled", is_flag=True, help="Compile the student's step; on CUDA as a CUDA graph."
        ),
    ),
    RARELY,
    PLANNED,
    as_argument("execution", build_execution, section(EXECUTION, *HOW)),
    as_argument("paths", build_paths, section(PLACES, WEIGHTS, CONTRACT, DATA_DIR, CACHE_DIR)),
)
def train(
    target: str | None,
    model: str | None,
    seed: int,
    limit: int | None,
    out: str | None,
    resume: str | None,
    as_json: bool,
    finetune_from: str | None,
    pretrained: bool,
    eval_every: int,
    trackers: tuple[str, ...],
    augmentation: Augmentation,
    execution: Execution,
    paths: Paths,
    only_resolve: bool = False,
    **settings: Unpack[Settings],
) -> None:
    """Stage two: train a student, taught by sources.

    It learns its own labels and, in one auxiliary head per source, what that source said about the same
    pixels. Settings that are not given follow the paper's recipe for the target (table 1). The same command
    with the same --out continues a stopped run, to the same numbers, and so does --resume; if things have
    moved since, --target imagefolder:PATH, --source program:FILE, --unlabelled, --data-dir, --cache-dir and
    --weights say where they are. Under torchrun, the processes share every batch.
    """
    from pipeline import api
    from pipeline.data import target_slug

    if resume is not None:
        summary = _continue(resume, target, execution, trackers, settings)
    elif target is not None:
        settings["preset"] = settings["preset"] or _usual_preset(target, settings["recipe"])
        asked: dict[str, Any] = {
            "model": model,
            "augmentation": augmentation,
            "execution": execution,
            "seed": seed,
            "limit": limit,
            "eval_every": eval_every,
            "finetune_from": finetune_from,
            "pretrained": pretrained,
            **settings,
        }
        if only_resolve:
            show_settings(api.resolved_settings(target, paths=paths, **asked), as_json)
            return
        out = out or str(new_run_folder(f"{target_slug(target)}-{settings['method']}"))
        followers = (*trackers, *followers_of_config())
        summary = api.train(target, out=out, paths=paths, trackers=followers, **asked)
    else:
        raise click.UsageError("Missing option '--target', or '--resume' to continue a run.")
    run = str(resume or out)
    if as_json:
        tell_json(summary | {"run": run})
    else:
        tell(run)


def _continue(
    run: str, target: str | None, execution: Execution, trackers: tuple[str, ...], settings: Settings
) -> dict[str, Any]:
    """Resume a run; options that it has settled are refused."""
    from pipeline import api
    from pipeline.data import path_family

    told = "target sources" if target is None or path_family(target) else "sources"
    require_alone(
        f"resume {told} unlabelled device renderer threads data_dir cache_dir weights trackers as_json"
    )
    return api.resume(
        run,
        execution=execution,
        paths=paths_of(run),
        target=target,
        sources=settings["sources"],
        unlabelled=settings["unlabelled"],
        trackers=trackers,
    )


def _usual_preset(target: str, recipe: str | None) -> str:
    """The preset of a command that names none: "best" for a folder of the user's own, unless a recipe is
    named.
    """
    from pipeline.data import path_family

    return "best" if recipe is None and path_family(target) is not None else "paper"
