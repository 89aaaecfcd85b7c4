"""Training settings per target: table 1 of SSKT (Hong, Yoon, Choi, WACV 2022), our own for other targets, and
ours that are fast, or for students that start from pretrained weights.

The table gives milestones but no number of epochs: STL10's 200 come from the command on the authors' page;
the others, which end some time after the last milestone, are ours. It gives no gamma either; 0.2 is the
released code's for [60,120,160,200], 0.1 is customary for the other two schedules.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from sskt.errors import RunError, SettingError

RECIPES = ("paper", "fast", "finetune")
BY_SIZE = ("epochs", "batch_size", "lr")  # a recipe that has 0 for them leaves them to `finetune_length`
# the fractions of all steps that a schedule reads, by the name of the setting
FRACTIONS = {"trapezoid": ("warm_up", "cool_down"), "warm-cosine": ("warm_up",)}
SETTINGS = (  # fields of a recipe that a run may override
    "epochs",
    "batch_size",
    "optimizer",
    "lr",
    "schedule",
    "milestones",
    "gamma",
    "patience",
    "warm_up",
    "cool_down",
    "momentum",
    "dampening",
    "nesterov",
    "weight_decay",
    "decay_norms",
    "ema",
    "layer_decay",
    "label_smoothing",
    "temperature",
    "alpha",
    "aux_loss",
    "primary_loss",
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train a student on one target; each setting is a default that the command line can change."""

    target: str
    models: tuple[str, ...]  # the first is the default
    epochs: int
    lr: float
    milestones: tuple[int, ...]  # epochs at which lr is multiplied by gamma
    gamma: float
    momentum: float
    weight_decay: float
    batch_size: int
    optimizer: str = "sgd"  # one of sskt.optimiser.OPTIMIZERS
    schedule: str = "multistep"  # one of sskt.schedules.SCHEDULES
    patience: int = 10  # for a plateau, in evaluations: the released 3D code's
    dampening: float = 0.0  # of the momentum
    nesterov: bool = False
    warm_up: float = 0.2  # for a trapezoid or warm-cosine: fractions of all steps
    cool_down: float = 0.8  # for a trapezoid
    decay_norms: bool = True  # whether norms and biases have weight decay too
    ema: float = 0.0  # decay per step of the average of weights that is scored and kept; 0: there is none
    layer_decay: float = 1.0  # factor on the rate per layer below the heads; 1: all have the same rate
    label_smoothing: float = 0.0
    finetune_lr: float | None = None  # replaces lr for a student that starts from pretrained weights
    temperature: float = 3.0  # T and alpha: the released 2D code's defaults
    alpha: float = 0.1
    aux_loss: str = "ce"  # "ce" or "kd"; the table has both, CE first
    primary_loss: str = "ce"  # "bce" for several labels per image
    published: bool = True  # False: ours, not from the paper
    name: str = "paper"  # one of RECIPES

    def milestones_in(self, epochs: int) -> tuple[int, ...]:
        """The milestones scaled to another number of epochs: each once, so that the rate never drops twice in
        one epoch, and without those that rounding moves to the start or the end.
        """
        scaled = [(milestone, round(milestone * epochs / self.epochs)) for milestone in self.milestones]
        # a milestone beyond the recipe's own epochs (STL10's last) stays, as runs have recorded it
        reached = [at for milestone, at in scaled if 0 < at < epochs or milestone >= self.epochs]
        return tuple(dict.fromkeys(reached))

    def patience_in(self, epochs: int) -> int:
        """The patience scaled to another number of epochs."""
        return max(1, round(self.patience * epochs / self.epochs)) if self.epochs else self.patience


_CIFAR10 = Recipe(
    target="cifar10",
    models=("resnet20", "resnet32", "vgg16"),
    epochs=400,
    lr=0.1,
    milestones=(150, 250, 350),
    gamma=0.1,
    momentum=0.9,
    weight_decay=5e-4,
    batch_size=128,
)
_CIFAR100 = replace(
    _CIFAR10,
    target="cifar100",
    models=("resnet20", "resnet32"),
    epochs=240,
    milestones=(60, 120, 160, 200),
    gamma=0.2,
)
_IMAGENET = replace(
    _CIFAR10,
    target="imagenet",
    models=("resnet18",),
    epochs=120,
    milestones=(30, 60, 90),
    weight_decay=1e-4,
)
_IMAGEFOLDER = replace(
    _CIFAR10,
    target="imagefolder",
    models=("resnet18", "resnet34", "resnet50"),
    epochs=60,
    lr=0.05,
    milestones=(30, 45),
    batch_size=32,
    published=False,
)
_VOC = replace(
    _IMAGENET,
    target="voc",
    models=("resnet18", "resnet34", "resnet50"),
    primary_loss="bce",
    finetune_lr=0.01,
)
_UCF101 = replace(
    _CIFAR10,
    target="ucf101",
    models=("resnet3d18",),
    epochs=200,
    milestones=(),
    schedule="plateau",
    dampening=0.9,
    weight_decay=1e-3,
    finetune_lr=0.01,
    temperature=1.0,  # T and alpha: the released 3D code's defaults
    alpha=1.0,
)
_PAPER = (
    _CIFAR10,
    _CIFAR100,
    replace(
        _CIFAR100,
        target="stl10",
        epochs=200,  # --epochs 200 in the authors' command; the last milestone then never comes
        models=("resnet20", "resnet32", "resnet44", "mobilenet_v2", "densenet121"),
    ),
    _IMAGENET,
    replace(_IMAGENET, target="places365"),
    _VOC,
    replace(_VOC, target="voc2007"),
    _IMAGEFOLDER,
    _UCF101,
    replace(_UCF101, target="hmdb51"),
    replace(_UCF101, target="ccv", primary_loss="bce", published=False),
    replace(
        _UCF101,
        target="videofolder",
        models=("resnet3d18", "resnet3d10", "r3d_18"),
        epochs=60,
        lr=0.02,
        schedule="cosine",
        dampening=0.0,
        batch_size=16,
        published=False,
    ),
    replace(
        _IMAGEFOLDER,
        target="digits",
        models=("resnet20", "resnet32", "resnet44"),
        epochs=40,
        milestones=(20, 30),
    ),
)


def _fast(paper: Recipe, epochs: int, batch_size: int) -> Recipe:
    """A recipe of fewer epochs: one cycle of the rate, whose mean is that of a constant rate scaled with the
    batch.
    """
    return replace(
        paper,
        name="fast",
        published=False,
        epochs=epochs,
        batch_size=batch_size,
        lr=2 * paper.lr * batch_size / paper.batch_size,
        schedule="trapezoid",
        milestones=paper.milestones_in(epochs),  # for whoever asks for another schedule
        nesterov=True,
        decay_norms=False,
        ema=0.99,
        alpha=max(paper.alpha, _FAST_ALPHA),
    )


# a user's images that no class folders hold have the recipes of those that are in some
_AS_FOLDERS = {"list": "imagefolder", "tar": "imagefolder", "hf-dataset": "imagefolder"}


# with the paper's 0.1 heads taught nothing on digits, most of them without a label, and on 450 photographs;
# with 1 six and seven points, with 3 and more less again (benchmarks/RESULTS.md)
_FAST_ALPHA = 1.0
# a tenth of the paper's epochs; a quarter, and no larger batch, where there are few images; all where nobody
# knows how many there are
_FAST_LENGTHS = {  # epochs, batch size
    "cifar10": (40, 256),
    "cifar100": (24, 256),
    "stl10": (50, 128),
    "imagenet": (12, 256),
    "places365": (12, 256),
    "voc": (30, 128),
    "voc2007": (30, 128),
    "imagefolder": (60, 32),
    "digits": (10, 32),
}
_FAST = tuple(_fast(paper, *_FAST_LENGTHS[paper.target]) for paper in _PAPER if paper.target in _FAST_LENGTHS)


def _finetune(paper: Recipe) -> Recipe:
    """A recipe for a student that starts from pretrained weights, by the number of training images."""
    return replace(
        paper,
        name="finetune",
        published=False,
        epochs=0,
        batch_size=0,
        lr=0.0,
        finetune_lr=None,
        optimizer="adamw",
        weight_decay=0.05,
        decay_norms=False,
        schedule="warm-cosine",
        warm_up=0.1,
        milestones=(),
        ema=0.99,
        layer_decay=0.75,
    )


_FINETUNE = tuple(_finetune(paper) for paper in _PAPER if paper.target in _FAST_LENGTHS)
_RECIPES = {(recipe.target, recipe.name): recipe for recipe in _PAPER + _FAST + _FINETUNE}
# pretext tasks: the schedules of the original papers in epochs of 200 (150), which they count in iterations
_PRETEXTS: dict[str, dict[str, Any]] = {
    "sorting": {"epochs": 200, "batch_size": 64, "lr": 0.01, "milestones": (152,), "gamma": 0.1},
    "egomotion": {
        "epochs": 200,
        "batch_size": 128,
        "lr": 0.001,
        "milestones": tuple(range(16, 200, 16)),
        "gamma": 0.5,
    },
    "tracking": {
        "epochs": 200,
        "batch_size": 50,
        "lr": 0.001,
        "milestones": (50, 100, 150),
        "gamma": 0.1,
    },
    "prediction": {
        "epochs": 150,
        "batch_size": 4,
        "lr": 0.001,
        "milestones": (75,),
        "gamma": 0.1,
        "optimizer": "adam",
        "weight_decay": 0.0,
    },
}


def _pretext(task: str, **settings: Any) -> dict[str, Any]:
    """What a pretext task changes of any target's recipe."""
    name = "prednet" if task == "prediction" else f"vgg19-{task}"
    usual = {
        "models": (name, f"{name}-small"),
        "schedule": "multistep",
        "momentum": 0.9,
        "dampening": 0.0,
        "weight_decay": 5e-4,
        "finetune_lr": None,
        "primary_loss": "ce",
        "published": False,
    }
    return usual | settings


# methods that the table does not describe: Hinton et al.'s distillation, MAXL with equal weights, and graph
# distillation (Zhang and Peng, IJCAI 2018), whose teachers' temperatures are ours
_OVERRIDES: dict[str, dict[str, Any]] = {
    "kd": {"aux_loss": "kd", "temperature": 4.0, "alpha": 0.9},
    "graph": {"temperature": 2.0, "alpha": 0.6},
    "maxl": {"primary_loss": "focal", "aux_loss": "focal", "schedule": "cosine", "lr": 0.01, "alpha": 1.0},
    **{task: _pretext(task, **settings) for task, settings in _PRETEXTS.items()},
}
# the same paper's schedule for its own targets. It prints "Adam optimizer with momentum 0.9" and this rate,
# at which Adam taught AlexNet nothing where we tried it (docs/method.md, section 4), so the optimiser is SGD;
# weight decay and finetune_lr are ours
_GRAPH_OF_VIDEOS: dict[str, Any] = {
    "models": ("alexnet",),
    "epochs": 350,
    "lr": 0.01,
    "finetune_lr": 0.001,
    "schedule": "multistep",
    "milestones": tuple(range(50, 350, 50)),
    "gamma": 0.5,
    "dampening": 0.0,
    "weight_decay": 5e-4,
}
_GRAPH_TARGETS = ("ucf101", "hmdb51", "ccv")


def finetune_length(n_images: int, batch_size: int = 0) -> dict[str, Any]:
    """BY_SIZE of the finetune recipe for a number of training images (docs/method.md, section 4.2), with a
    given `batch_size` if it is not 0.
    """
    usual = next((size for size in (32, 16) if n_images >= 10 * size), 8)  # ten steps per epoch
    batch_size = batch_size or usual
    epochs = round(math.sqrt(2e6 / max(1, n_images)))
    return {
        "epochs": min(60, max(5, epochs)),
        "batch_size": batch_size,
        "lr": 5e-4 * math.sqrt(batch_size / 32),
    }


def register(recipe: Recipe) -> None:
    """Make a recipe known by its target's and its own name. Raises RunError for a target that has one of that
    name.
    """
    if (recipe.target, recipe.name) in _RECIPES:
        raise RunError(f"target {recipe.target!r} has a recipe already; choose another name")
    _RECIPES[recipe.target, recipe.name] = recipe


def all_recipes() -> list[Recipe]:
    """Every recipe, the paper's first."""
    return sorted(_RECIPES.values(), key=lambda recipe: not recipe.published)


def has_recipe(target: str, method: str, name: str) -> bool:
    """Whether a target has a recipe of this name that the method can take."""
    return (_family(target), name) in _RECIPES and not _has_own_schedule(method, name)


def _family(target: str) -> str:
    """The target, or the family of a user's own, that the recipes of `target` are kept under."""
    head = target.partition(":")[0]
    return _AS_FOLDERS.get(head, head)


def _has_own_schedule(method: str, name: str) -> bool:
    return name != "paper" and "schedule" in _OVERRIDES.get(method, {})


def recipe_for(target: str, method: str = "sskt", *, finetuned: bool = False, name: str = "paper") -> Recipe:
    """The recipe of a target by its registry name; every `imagefolder:...` has the same one, and so have a
    user's lists and shards.

    `method` is one of sskt.methods.METHODS; `finetuned` is for a student that starts from pretrained weights;
    `name` is one of RECIPES. Raises RunError for an unknown target or name, and where there is no such recipe
    of the target or the method.
    """
    if name not in RECIPES:
        raise SettingError("recipe", f"is {name!r}, expected one of {', '.join(RECIPES)}")
    family = _family(target)
    if (family, "paper") not in _RECIPES:
        known = [of for of, called in _RECIPES if called == "paper"]
        raise RunError(f"target {target!r} has no recipe, expected one of {', '.join(known)}")
    if (family, name) not in _RECIPES:
        having = ", ".join(of for of, called in _RECIPES if called == name)
        raise RunError(f"--recipe {name}: there is none for {target}, only for {having}; use --recipe paper")
    overrides = _OVERRIDES.get(method, {})
    if method == "graph" and family in _GRAPH_TARGETS:
        overrides = overrides | _GRAPH_OF_VIDEOS
    if _has_own_schedule(method, name):
        raise RunError(f"--recipe {name}: --method {method} has its own schedule; use --recipe paper")
    recipe = replace(_RECIPES[family, name], target=target, **overrides)
    return replace(recipe, lr=recipe.finetune_lr) if finetuned and recipe.finetune_lr else recipe
