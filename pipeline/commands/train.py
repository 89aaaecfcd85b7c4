"""Stage two's commands: train and evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from pipeline.commands.front import Sectioned
from pipeline.commands.options import (
    BEGINNING,
    CACHE_DIR,
    CLIPS,
    CONTRACT,
    DATA_DIR,
    EXECUTION,
    HOW,
    JSON,
    LIMIT,
    PLACES,
    PLANNED,
    RARE,
    SPLIT,
    UNLABELLED,
    WEIGHTS,
    Decorator,
    build_execution,
    build_paths,
    build_target,
    choice_option,
    count_option,
    folder_option,
    number_option,
    options,
    section,
    text_option,
    together,
)
from pipeline.commands.output import show, tell

if TYPE_CHECKING:
    from pipeline.runtime.execution import Execution
    from pipeline.runtime.paths import Paths

_OF_RECIPE = "[default: the recipe's]"


def paths_of_run(run: Path) -> Paths:
    """Where a run found its data, stores and weights, but for what the command line says."""
    from pipeline.api import paths_of

    context = click.get_current_context()
    told = {name: value for name, value in context.params.items() if _is_told(context, name)}
    built = build_paths(told.get("data_dir", Path()), told.get("cache_dir", ""), told.get("weights", ()))
    names = [name for name in ("data_dir", "cache_dir", "weights") if name in told]
    return paths_of(run, **{name: getattr(built, name) for name in names})


def _require_alone(allowed: str) -> None:
    """Refuse options that a run which goes on has settled already."""
    context = click.get_current_context()
    for option in context.command.params:
        if option.name not in allowed.split() and _is_told(context, option.name or ""):
            raise click.UsageError(
                f"{option.opts[0]} is settled by the run that --resume goes on with; leave it out"
            )


def _is_told(context: click.Context, name: str) -> bool:
    """Whether the user gave an option, on the command line or in the environment."""
    return context.get_parameter_source(name) in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)


def _epochs(_ctx: click.Context, _option: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """60,120 as numbers."""
    try:
        return None if text is None else tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of epochs such as 60,120") from None


def _named_numbers(_ctx: click.Context, _option: click.Parameter, pairs: tuple[str, ...]) -> dict[str, float]:
    """NAME=T pairs; a name may hold '=', a number does not."""
    found = {}
    for pair in pairs:
        name, equals, number = pair.rpartition("=")
        try:
            found[name] = float(number)
        except ValueError:
            equals = ""
        if not equals:
            raise click.BadParameter(f"{pair!r} is not NAME=T, e.g. run:runs/teacher=2.0")
    return found


class ChoiceParamType(click.Choice[str]):
    """The methods of this program, and whatever was registered beside them (`sskt.methods.register`)."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ARG002
        """As it is: whoever looks for it knows all names."""
        return str(value)


def _flag_option(name: str, text: str) -> Decorator:
    """A switch that the recipe sets if the user does not: --name or --no-name."""
    return click.option(f"{name}/--no-{name[2:]}", default=None, help=text)


_SOURCES = "Sources"
_LABELS = "Few labels"
_GRAPH = "Graph distillation"
_RECIPE = "Recipe"


@click.command(cls=Sectioned)
@options(
    together(
        "target",
        build_target,
        text_option(
            "--target",
            "Dataset: cifar10, cifar100, stl10, imagenet, places365, voc, voc2007, ucf101, hmdb51, digits, "
            "imagefolder:PATH or videofolder:PATH.",
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
        "Student: resnet20, resnet18 and others; for clips resnet3d18, r3d_18. Of videos, one for images "
        f"sees the centre frame of each clip. {_OF_RECIPE}",
    ),
    count_option("--epochs", f"Length of the training. {_OF_RECIPE}"),
    count_option("--batch-size", f"Images per step, over all processes. {_OF_RECIPE}"),
    number_option("--lr", "Initial learning rate. [default: the recipe's; 0.001 with --optimizer adam]"),
    choice_option(
        "--preset",
        "paper best",
        None,
        "What to do where you say nothing: paper, SSKT as published; best, a probe of the sources and the "
        "fast recipe. [default: best for imagefolder and videofolder without --recipe; else paper]",
    ),
    LIMIT,
    count_option("--seed", "Seed of initial weights and order.", 0, low=0),
    folder_option("--out", None, "Run folder. [default: runs/<target>-<method>-<time>]"),
    folder_option("--resume", None, "Continue the run in this folder instead of starting one."),
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
            f"Loss of the source heads; for embeddings cosine or smooth-l1. {_OF_RECIPE}",
        ),
        choice_option(
            "--aux-head",
            "linear mlp",
            "linear",
            "Source heads without the transfer module: linear, or with a hidden layer.",
        ),
        number_option("--temperature", f"Temperature of the sources' logits. {_OF_RECIPE}"),
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
            type=click.Path(path_type=Path, dir_okay=False),
            help="Text file of the training samples that keep their labels, one a line: paths below the "
            "target's folder, or ids. The others are trained on without. [default: all]",
        ),
        count_option(
            "--labels-per-class",
            "Keep the labels of so many training samples per class, and train on the others without. "
            "[default: all]",
        ),
        number_option(
            "--labelled-share",
            "Fraction of labelled samples in a batch. [default: theirs of all samples]",
        ),
    ),
    section(
        _GRAPH,
        choice_option(
            "--graph-logits",
            "em cosine",
            "em",
            "Distance from each teacher: earth mover's distance of probabilities, or 1 - cosine of logits "
            "(MMGD).",
        ),
        choice_option(
            "--edges",
            "learned gain uniform",
            "learned",
            "Weights between teachers: learned, by how much better the student imitates one than another, or "
            "all alike.",
        ),
        choice_option(
            "--transport",
            "sample batch",
            "sample",
            "Compare the answers about each sample, or match those about the whole batch at the least cost.",
        ),
        click.option(
            "--teacher-temperature",
            multiple=True,
            metavar="NAME=T",
            callback=_named_numbers,
            help="Temperature of one source's logits. Repeatable. [default: such that all are equally soft "
            "on average, around --temperature]",
        ),
    ),
    section(
        _RECIPE,
        choice_option(
            "--recipe",
            "paper fast",
            None,
            "Settings to start from; fast: our own for images, with fewer epochs. See sskt recipes. "
            "[default: paper; with --preset best fast]",
        ),
        choice_option("--primary-loss", "ce focal bce", None, f"Loss of the target's labels. {_OF_RECIPE}"),
        choice_option(
            "--optimizer", "sgd adam", None, f"SGD with momentum, or Adam; see also --lr. {_OF_RECIPE}"
        ),
        choice_option(
            "--schedule",
            "multistep plateau cosine trapezoid",
            None,
            f"Learning rate schedule; trapezoid: per step, linear warm-up and cool-down. {_OF_RECIPE}",
        ),
        number_option("--weight-decay", f"L2 penalty. {_OF_RECIPE}", positive=False),
        click.option(
            "--finetune-from",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Initial weights: torchvision's, 3D-ResNets-PyTorch's, or a student of ours.",
        ),
        text_option("--freeze-until", "Freeze the backbone up to this block, e.g. layer4."),
        number_option(
            "--val-share",
            "Fraction of the training samples held out to choose the best epoch; 0: none is chosen. "
            "[default: 0.1 for a folder without a val split; other targets use their test split]",
            positive=False,
        ),
    ),
    section(
        EXECUTION,
        choice_option(
            "--amp",
            "auto fp32 bf16 fp16",
            "auto",
            "Precision of the student; auto: bf16 where the device has it.",
        ),
        click.option("--compile", "compiled", is_flag=True, help="Compile the student's step."),
    ),
    section(
        RARE,
        choice_option(
            "--kd-reduction",
            "mean batchmean",
            None,
            "Reduction of --aux-loss kd; mean: over batch and classes, as released. [default: mean; "
            "batchmean for --method kd, except with several labels per image]",
        ),
        choice_option(
            "--gradient-cosine",
            "off record weigh",
            "off",
            "Record the cosine of each auxiliary gradient with the primary one, or weigh the auxiliary one "
            "by it on the weights that both reach.",
        ),
        count_option("--peers", "Networks of --method dml.", 2, low=2),
        count_option("--psi", "Sub-classes per class of --method maxl.", 5, low=2),
        choice_option(
            "--teacher-bn",
            "frozen batch-stats",
            "frozen",
            "Batch norm of the sources; batch-stats: as in the released code, live only.",
        ),
        text_option(
            "--milestones",
            "Epochs at which the learning rate drops. [default: the recipe's, scaled with --epochs]",
            metavar="E,E",
            callback=_epochs,
        ),
        number_option("--gamma", f"Factor of a drop. {_OF_RECIPE}"),
        number_option(
            "--warm-up",
            "trapezoid: fraction of the steps in which the rate rises from 0. [default: 0.2]",
            positive=False,
        ),
        number_option(
            "--cool-down",
            "trapezoid: fraction of the steps in which it falls to 0. [default: 0.8]",
            positive=False,
        ),
        _flag_option("--nesterov", f"Nesterov's momentum. {_OF_RECIPE}"),
        _flag_option("--decay-norms", f"Apply weight decay to norms and biases too. {_OF_RECIPE}"),
        number_option(
            "--ema",
            "Score and save an exponential moving average of the weights, with this decay per step; 0: the "
            f"weights themselves. {_OF_RECIPE}",
            positive=False,
        ),
        *BEGINNING,
        number_option("--clip-norm", "Largest norm of all gradients together. [default: no limit]"),
        number_option("--label-smoothing", f"Smoothing of the target's labels. {_OF_RECIPE}", positive=False),
        number_option("--mixup", "MixUp: mix images by shares from Beta(A, A).", default=0.0, positive=False),
        number_option(
            "--cutmix", "CutMix: swap windows by shares from Beta(A, A).", default=0.0, positive=False
        ),
        count_option("--eval-every", "Epochs between evaluations.", 1),
        click.option(
            "--deterministic", is_flag=True, help="Use only kernels that give the same bits each time."
        ),
    ),
    PLANNED,
    together("execution", build_execution, section(EXECUTION, *HOW)),
    together("paths", build_paths, section(PLACES, WEIGHTS, CONTRACT, DATA_DIR, CACHE_DIR)),
)
def train(
    target: str | None,
    resume: Path | None,
    execution: Execution,
    out: Path | None,
    as_json: bool,
    **what: Any,
) -> None:
    """Stage two: train a student, taught by sources.

    It learns its own labels and, in one auxiliary head per source, what that source said about the same
    pixels. Settings that are not given follow the paper's recipe for the target (table 1). A stopped run
    continues with --resume, to the same numbers; if things have moved since, --target imagefolder:PATH,
    --source program:FILE, --unlabelled, --data-dir, --cache-dir and --weights say where they are. Under
    torchrun, the processes share every batch.
    """
    from pipeline import api
    from pipeline.data.datasets.registry import path_family, target_slug
    from pipeline.train.presets import usual_preset
    from pipeline.train.run_folder import new_run_folder

    if resume is not None:
        told = "target sources" if target is None or path_family(target) else "sources"
        _require_alone(f"resume {told} unlabelled device renderer threads data_dir cache_dir weights as_json")
        lying = what["sources"]
        summary = api.resume(
            resume,
            execution=execution,
            paths=paths_of_run(resume),
            target=target,
            sources=lying,
            unlabelled=what["unlabelled"],
        )
    elif target is not None:
        what["preset"] = what["preset"] or usual_preset(target, what["recipe"])
        out = out or new_run_folder(f"{target_slug(target)}-{what['method']}")
        summary = api.train(target, execution=execution, out=out, **what)
    else:
        raise click.UsageError("Missing option '--target', or '--resume' to go on with a run.")
    run = str(resume or out)
    tell(json.dumps(summary | {"run": run}, indent=2) if as_json else run)


@click.command()
@options(
    click.argument("run", type=click.Path(path_type=Path)),
    CLIPS,
    click.option("--best", is_flag=True, help="Score the student of the best epoch instead of the last one."),
    together("execution", build_execution, *HOW),
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
        run, paths=paths_of_run(run), target=target, execution=execution, which=which, clips=clips
    )
    if as_json:
        click.echo(json.dumps(figures, indent=2))
        return
    by_class = figures.pop("classes")
    written = [figures.pop(name) for name in ("confusion_csv", "confusion_png") if name in figures]
    show([figures], as_json, " ".join(figures))
    kind = "ap" if "test_map" in figures else "top1"
    show([{"class": name, kind: value} for name, value in by_class.items()], as_json, f"class {kind}")
    for path in written:
        tell(path)
