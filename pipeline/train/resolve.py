"""The settings of a run, from what was asked and the paper's recipe; what does not go together is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.datasets.registry import parse_target
from pipeline.runtime import coerce
from pipeline.runtime.execution import Execution, channels_last
from pipeline.source_outputs import SourceOutputs
from pipeline.train.config import PRECISIONS, TrainConfig
from pipeline.train.data import Asked, Supervision, TrainingData
from pipeline.train.method import READ_BY, choose_clip_mean, choose_precision, require_read
from sskt.download import known_digest_of
from sskt.errors import RunError
from sskt.losses import AUXILIARY_LOSSES, KD_REDUCTIONS, PRIMARY_LOSSES
from sskt.methods import GATES, GRADIENT_COSINE, METHODS
from sskt.normalise import RELEASED_MEAN
from sskt.recipes import SETTINGS, recipe_for
from sskt.schedules import SCHEDULES
from sskt.students import BACKBONES, CLIP_BACKBONES, DROPOUTS, Backbone
from sskt.students.initialise import choose_init

_CHOICES = {
    "primary_loss": PRIMARY_LOSSES,
    "aux_loss": AUXILIARY_LOSSES,
    "kd_reduction": KD_REDUCTIONS,
    "gradient_cosine": GRADIENT_COSINE,
    "schedule": SCHEDULES,
    "amp": PRECISIONS,
}
_ABOVE_0 = math.ulp(0)
_RANGES = {
    "temperature": (_ABOVE_0, math.inf),
    "alpha": (0, math.inf),
    "views": (1, math.inf),
    "epochs": (1, math.inf),
    "batch_size": (1, math.inf),
    "lr": (_ABOVE_0, math.inf),
    "gamma": (_ABOVE_0, math.inf),
    "momentum": (0, 1),
    "dampening": (0, 1),
    "weight_decay": (0, math.inf),
    "clip_norm": (_ABOVE_0, math.inf),
    "label_smoothing": (0, 1),
    "eval_every": (1, math.inf),
    "mixup": (0, math.inf),
    "cutmix": (0, math.inf),
}


@dataclass(frozen=True, slots=True)
class Tuning:
    """What the paper's recipes leave out, off by default, and how the student's step is computed."""

    clip_norm: float | None = None  # largest norm of all gradients together
    label_smoothing: float = 0.0
    finetune_from: Path | None = None  # weights that the backbone begins with; see sskt.students.pretrained
    freeze_until: str | None = None  # the backbone's part before this one stays as it is
    # of the heads: one of sskt.students.initialise.INITS; None: "released" where it has one
    init: str | None = None
    clip_mean: str = RELEASED_MEAN  # what 3D ResNets take off: one of sskt.normalise.CLIP_MEANS
    mixup: float = 0.0  # a of Beta(a, a)
    cutmix: float = 0.0
    amp: str = "auto"  # precision: "auto" takes the fastest for the device; or "fp32", "bf16", "fp16"
    compiled: bool = False
    deterministic: bool = False
    val_share: float | None = None  # of the training samples, to choose the best epoch by; see `open_splits`

    def __post_init__(self) -> None:
        """Raises RunError for what is no number or no path."""
        for name in ("clip_norm", "label_smoothing", "mixup", "cutmix"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else coerce.number(value, name))
        if self.finetune_from is not None:
            object.__setattr__(self, "finetune_from", coerce.path(self.finetune_from, "finetune_from"))


def settings_of(
    target: str, supervision: Supervision, tuning: Tuning, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """A value for each of a recipe's `SETTINGS`: what `overrides` say, else the recipe's for this method; the
    milestones and a plateau's patience move with the epochs.

    Raises RunError for an override that is no such setting, and for what this method would not read.
    """
    recipe = recipe_for(target, supervision.method, finetuned=tuning.finetune_from is not None)
    chosen: dict[str, Any] = {
        name: coerce.setting(name, value) for name, value in overrides.items() if value is not None
    }
    if "epochs" in chosen:
        chosen.setdefault("milestones", recipe.milestones_in(chosen["epochs"]))
        if chosen.get("schedule", recipe.schedule) == "plateau":
            chosen.setdefault("patience", recipe.patience_in(chosen["epochs"]))
    settings = {name: chosen.pop(name, getattr(recipe, name)) for name in SETTINGS}
    if chosen:
        raise RunError(f"{next(iter(chosen))} is no setting of a recipe, expected {', '.join(SETTINGS)}")
    if supervision.method in METHODS:
        changed = {name: value for name, value in settings.items() if value != getattr(recipe, name)}
        require_read(supervision.method, changed | _not_default(supervision) | _not_default(tuning))
    if supervision.kd_reduction is not None and settings["aux_loss"] != "kd":
        raise RunError(
            f"--kd-reduction {supervision.kd_reduction} is of --aux-loss kd, this run has "
            f"{settings['aux_loss']}; leave it out"
        )
    return settings


def _not_default(chosen: Supervision | Tuning) -> dict[str, Any]:
    """What was asked for of that which not every method reads."""
    named = {field.name: field.default for field in fields(chosen) if field.name in READ_BY}
    return {
        name: getattr(chosen, name) for name, default in named.items() if getattr(chosen, name) != default
    }


def config_of(
    asked: Asked, lesson: TrainingData, tuning: Tuning, *, model: str, seed: int, eval_every: int
) -> TrainConfig:
    """Everything that changes a run's numbers. Raises RunError for settings that the data do not fit."""
    labels = lesson.labels
    planned = plan_config(asked, tuning, model=model, seed=seed, eval_every=eval_every)
    config = TrainConfig(
        classes=lesson.dataset.classes,
        sources=tuple(labels.n_classes) if labels else (),
        labels=labels.kind if labels else "none",
        views=labels.views if labels else asked.supervision.views,
        contents=lesson.contents(),
        source_weights=dict(labels.weights_sha256) if labels else {},
        contracts=declared_of(labels) if labels else {},
        val_share=lesson.val_share,
        chosen_on=lesson.chosen_on,
        **planned,
    )
    _require_sound(config)
    _require_trainable(config, len(lesson.dataset))
    _require_fitting_loss(config, lesson)
    return config


def declared_of(labels: SourceOutputs) -> dict[str, Any]:
    """What is declared of each source, as plain data; sources of which nothing is are left out."""
    declared = {name: contract.to_dict() for name, contract in labels.contracts.items()}
    return {name: fields for name, fields in declared.items() if fields}


def plan_config(asked: Asked, tuning: Tuning, *, model: str, seed: int, eval_every: int) -> dict[str, Any]:
    """The part of a run's config that is known before its data and its sources are opened."""
    taught, spec = asked.supervision, parse_target(asked.target)
    planned = {
        "target": asked.target,
        "model": model,
        "method": taught.method,
        "transfer_module": taught.transfer_module,
        "kd_reduction": taught.kd_reduction or _kd_reduction(taught.method, asked.settings["primary_loss"]),
        "gradient_cosine": taught.gradient_cosine,
        **({"gates": GATES[0]} if taught.gradient_cosine == "weigh" else {}),
        "peers": taught.peers,
        "psi": taught.psi,
        "teacher_bn": taught.teacher_bn,
        **asked.settings,
        "seed": seed,
        "limit": asked.limit,
        "eval_every": eval_every,
        **_tuned(tuning, model, taught.method, asked.execution),
        "channels_last": channels_last(asked.execution.device),
        "ranks": asked.world.size,
        "plan": asked.augmentation.training_plan(spec).to_dict(),
        "eval_plan": asked.augmentation.evaluation_plan(spec).to_dict(),
        "augmentation": asdict(asked.augmentation),
    }
    return {name: _plain(value) for name, value in planned.items()}


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's: a checkpoint with others could not be read again."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def _kd_reduction(method: str, primary_loss: str) -> str:
    """Over the classes as the primary loss has it where a teacher knows the same ones, else as released."""
    return "batchmean" if method == "kd" and primary_loss != "bce" else "mean"


def require_reads(backbone: Backbone, config: TrainConfig) -> None:
    """Raise RunError for a network for pictures where the target holds videos, or the other way round."""
    spec = parse_target(config.target)
    wanted = spec.holds_videos
    if backbone.reads_clips != wanted:
        reads, holds = ("clips", "pictures") if backbone.reads_clips else ("pictures", "videos")
        able = [name for name in BACKBONES if (name in CLIP_BACKBONES) == wanted]
        raise RunError(
            f"--model {config.model} reads {reads}, and {spec.name} holds {holds}; "
            f"choose one of {', '.join(able)}"
        )


def _tuned(tuning: Tuning, model: str, method: str, execution: Execution) -> dict[str, Any]:
    """`tuning` as a config has it, with what the network and the method settle; which split chooses
    is for the data to say.
    """
    began_with = tuning.finetune_from
    return {name: value for name, value in asdict(tuning).items() if name != "val_share"} | {
        "amp": choose_precision(tuning.amp, method, execution.device),
        "finetune_from": began_with and weights_name(began_with),
        "init": choose_init(model, tuning.init),
        "clip_mean": choose_clip_mean(tuning.clip_mean, model),
        "dropout": DROPOUTS.get(model, 0.0),
    }


def weights_name(path: Path) -> str:
    """Weights as a config names them: by file name and sha256. Raises RunError if they cannot be read."""
    try:
        return f"{path.name} sha256 {known_digest_of(path)[:16]}"
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror or error}); check --finetune-from") from None


def _require_sound(config: TrainConfig) -> None:
    """Raise RunError for a value that no training can have."""
    for name, choices in _CHOICES.items():
        if getattr(config, name) not in choices:
            raise RunError(
                f"{_option(name)} is {getattr(config, name)!r}, expected one of {', '.join(choices)}"
            )
    for name, (low, high) in _RANGES.items():
        value = getattr(config, name)
        if value is not None and not (low <= value <= high and value < math.inf):
            most = "" if high == math.inf else f" and at most {high:g}"
            least = "more than 0" if low == _ABOVE_0 else f"at least {low:g}"
            raise RunError(f"{_option(name)} is {value}, expected {least}{most}")
    if config.method == "kd" and config.alpha > 1:
        raise RunError(
            f"--alpha is {config.alpha:g}, expected at most 1 with --method kd, where it is the teacher's "
            f"share of the loss"
        )
    if config.schedule == "plateau" and config.chosen_on is None:
        raise RunError(
            "--schedule plateau waits for a loss that stands still, and --val-share 0 leaves none to "
            "look at; raise --val-share, or choose multistep or cosine"
        )


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def smallest_step(config: TrainConfig, n_samples: int) -> int:
    """Samples of the smallest step of an epoch, over all ranks."""
    return n_samples // -(-n_samples // config.batch_size)


def _require_trainable(config: TrainConfig, n_samples: int) -> None:
    if config.gradient_cosine != "off" and config.ranks > 1:
        raise RunError(
            f"--gradient-cosine {config.gradient_cosine} compares gradients of whole batches, which "
            f"{config.ranks} processes share; leave it out, or train in one process"
        )
    smallest = smallest_step(config, n_samples)
    if smallest < config.ranks:
        raise RunError(
            f"a step has {smallest} samples and {config.ranks} processes share them; raise --batch-size"
        )


def _require_fitting_loss(config: TrainConfig, lesson: TrainingData) -> None:
    several = lesson.dataset.multi_hot is not None
    if several != (config.primary_loss == "bce"):
        holds, wanted = ("several labels", "bce") if several else ("one label", "ce or focal")
        raise RunError(
            f"--primary-loss {config.primary_loss}: the pictures of {config.target} have {holds} each; "
            f"use {wanted}"
        )
    if several and config.label_smoothing:
        raise RunError(
            f"--label-smoothing is of one label a picture, {config.target} has several; leave it out"
        )
    if config.label_smoothing and config.primary_loss != "ce":
        raise RunError(
            f"--label-smoothing is of --primary-loss ce, this run has {config.primary_loss}; leave it out"
        )
