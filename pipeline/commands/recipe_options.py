"""How a student is trained: the options whose default is the recipe's, and those that few need."""

from __future__ import annotations

import click

from pipeline.commands.options import (
    BEGINNING,
    RARE,
    Decorator,
    choice_option,
    count_option,
    number_option,
    section,
    text_option,
)

OF_RECIPE = "[default: the recipe's]"


def _epochs(_ctx: click.Context, _option: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """60,120 as numbers."""
    try:
        return None if text is None else tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of epochs such as 60,120") from None


def _flag_option(name: str, text: str) -> Decorator:
    """A switch that the recipe sets if the user does not: --name or --no-name."""
    return click.option(f"{name}/--no-{name[2:]}", default=None, help=text)


RECIPE = section(
    "Recipe",
    choice_option(
        "--recipe",
        "paper fast finetune",
        None,
        "Settings to start from; fast: our own for images, with fewer epochs; finetune: for pretrained "
        "weights, by the number of images. See sskt recipes. [default: paper; with --preset best fast, or "
        "finetune if the weights are pretrained]",
    ),
    choice_option("--primary-loss", "ce focal bce", None, f"Loss of the target's labels. {OF_RECIPE}"),
    choice_option(
        "--class-weights",
        "off balanced",
        "off",
        "Weight of each class in --primary-loss ce; balanced: inverse to its number of training samples.",
    ),
    choice_option(
        "--optimizer",
        "sgd adam adamw",
        None,
        f"SGD with momentum, Adam or AdamW; see also --lr. {OF_RECIPE}",
    ),
    choice_option(
        "--schedule",
        "multistep plateau cosine trapezoid warm-cosine",
        None,
        "Learning rate schedule; per step are trapezoid, linear warm-up and cool-down, and warm-cosine, "
        f"linear warm-up and half a cosine. {OF_RECIPE}",
    ),
    number_option(
        "--weight-decay",
        "L2 penalty; of adamw, decoupled from the gradient. "
        "[default: the recipe's; 0.05 with --optimizer adamw]",
        positive=False,
    ),
    number_option(
        "--layer-decay",
        "Factor on the learning rate per layer below the heads, in (0, 1], for pretrained students; 1: the "
        f"same rate for all. {OF_RECIPE}",
    ),
    click.option(
        "--pretrained",
        is_flag=True,
        help="Start from the model's published weights: torchvision's, or timm's from a local cache.",
    ),
    click.option(
        "--finetune-from",
        metavar="FILE|URL",
        help="Initial weights: torchvision's, timm's, 3D-ResNets-PyTorch's, or a student of ours.",
    ),
    text_option("--freeze-until", "Freeze the backbone up to this block, e.g. layer4."),
    number_option(
        "--val-share",
        "Fraction of the training samples held out to choose the best epoch; 0: none is chosen. "
        "[default: 0.1 for your own data without a val split; other targets use their test split]",
        positive=False,
    ),
)
RARELY = section(
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
    number_option("--gamma", f"Factor of a drop. {OF_RECIPE}"),
    number_option(
        "--warm-up",
        "trapezoid and warm-cosine: fraction of the steps in which the rate rises from 0. [default: the "
        "recipe's, or 0.2]",
        positive=False,
    ),
    number_option(
        "--cool-down",
        "trapezoid: fraction of the steps in which it falls to 0. [default: 0.8]",
        positive=False,
    ),
    count_option(
        "--patience", "plateau: evaluations without progress before a drop. [default: the recipe's]"
    ),
    number_option("--momentum", f"SGD's momentum. {OF_RECIPE}", positive=False),
    number_option("--dampening", f"Dampening of SGD's momentum. {OF_RECIPE}", positive=False),
    _flag_option("--nesterov", f"Nesterov's momentum. {OF_RECIPE}"),
    _flag_option("--decay-norms", f"Apply weight decay to norms and biases too. {OF_RECIPE}"),
    number_option(
        "--ema",
        "Score and save an exponential moving average of the weights, with this decay per step; 0: the "
        f"weights themselves. {OF_RECIPE}",
        positive=False,
    ),
    *BEGINNING,
    number_option("--clip-norm", "Largest norm of all gradients together. [default: no limit]"),
    number_option("--label-smoothing", f"Smoothing of the target's labels. {OF_RECIPE}", positive=False),
    number_option("--mixup", "MixUp: mix images by shares from Beta(A, A).", default=0.0, positive=False),
    number_option("--cutmix", "CutMix: swap windows by shares from Beta(A, A).", default=0.0, positive=False),
    count_option("--eval-every", "Epochs between evaluations.", 1),
    click.option("--deterministic", is_flag=True, help="Use only kernels that give the same bits each time."),
)
