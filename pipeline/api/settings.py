"""The settings of a run, from what was asked and the paper's recipe; what does not go together is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.api.lesson import Asked, Supervision
from pipeline.choices import channels_last, student_precision
from pipeline.execution import Execution
from pipeline.targets.spec import parse_target
from pipeline.training.config import PRECISIONS, TrainConfig
from pipeline.training.train import Lesson
from sskt.backbones import BACKBONES, CLIP_BACKBONES, Backbone
from sskt.download import digest_of
from sskt.errors import RunError
from sskt.losses import AUXILIARY_LOSSES, KD_REDUCTIONS, PRIMARY_LOSSES
from sskt.methods import GRADIENT_COSINE
from sskt.recipes import SETTINGS, recipe_for
from sskt.schedules import SCHEDULES

_KD_REDUCTION = {"kd": "batchmean"}
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
}


@dataclass(frozen=True, slots=True)
class Tuning:
    """What the paper's recipes leave out, off by default, and how the student's step is computed."""

    clip_norm: float | None = None  # largest norm of all gradients together
    label_smoothing: float = 0.0
    finetune_from: Path | None = None  # weights that the backbone begins with; see sskt.finetune
    freeze_until: str | None = None  # the backbone's part before this one stays as it is
    mixup: float = 0.0  # a of Beta(a, a)
    cutmix: float = 0.0
    amp: str = "auto"  # precision: "auto" takes the fastest for the device; or "fp32", "bf16", "fp16"
    compiled: bool = False
    deterministic: bool = False


def settings_of(
    target: str, supervision: Supervision, tuning: Tuning, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """A value for each of a recipe's `SETTINGS`: what `overrides` say, else the recipe's for this method; the
    milestones move with the epochs.

    Raises RunError for an override that is no such setting.
    """
    recipe = recipe_for(target, supervision.method, finetuned=tuning.finetune_from is not None)
    chosen: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in overrides.items()
        if value is not None
    }
    if "epochs" in chosen:
        chosen.setdefault("milestones", recipe.milestones_in(chosen["epochs"]))
    settings = {name: chosen.pop(name, getattr(recipe, name)) for name in SETTINGS}
    if chosen:
        raise RunError(f"{next(iter(chosen))} is no setting of a recipe, expected {', '.join(SETTINGS)}")
    return settings


def config_of(
    asked: Asked, lesson: Lesson, tuning: Tuning, *, model: str, seed: int, eval_every: int
) -> TrainConfig:
    """Everything that changes a run's numbers. Raises RunError for settings that the data do not fit."""
    taught, labels = asked.supervision, lesson.labels
    config = TrainConfig(
        target=asked.target,
        classes=lesson.index.classes,
        model=model,
        method=taught.method,
        sources=tuple(labels.n_classes) if labels else (),
        transfer_module=taught.transfer_module,
        kd_reduction=taught.kd_reduction or _KD_REDUCTION.get(taught.method, "mean"),
        gradient_cosine=taught.gradient_cosine,
        peers=taught.peers,
        psi=taught.psi,
        labels=labels.kind if labels else "none",
        teacher_bn=taught.teacher_bn,
        views=labels.views if labels else taught.views,
        seed=seed,
        limit=asked.limit,
        eval_every=eval_every,
        ranks=asked.ranks.world,
        plan=lesson.plan.to_dict(),
        eval_plan=lesson.eval_plan.to_dict(),
        augmentation=asdict(asked.augmentation),
        contents=lesson.contents(),
        channels_last=channels_last(asked.execution.device),
        **_tuned(tuning, asked.execution),
        **asked.settings,
    )
    _require_sound(config)
    _require_trainable(config, len(lesson.index))
    _require_fitting_loss(config, lesson)
    return config


def require_reads(backbone: Backbone, config: TrainConfig) -> None:
    """Raise RunError for a network for pictures where the target holds videos, or the other way round."""
    spec = parse_target(config.target)
    wanted = spec.videos is not None
    if backbone.reads_clips != wanted:
        reads, holds = ("clips", "pictures") if backbone.reads_clips else ("pictures", "videos")
        able = [name for name in BACKBONES if (name in CLIP_BACKBONES) == wanted]
        raise RunError(
            f"--model {config.model} reads {reads}, and {spec.name} holds {holds}; "
            f"choose one of {', '.join(able)}"
        )


def _tuned(tuning: Tuning, execution: Execution) -> dict[str, Any]:
    """`tuning` as a config has it."""
    began_with = tuning.finetune_from
    return asdict(tuning) | {
        "amp": student_precision(tuning.amp, execution.device),
        "finetune_from": began_with and weights_name(began_with),
    }


def weights_name(path: Path) -> str:
    """Weights as a config names them: by file name and sha256. Raises RunError if they cannot be read."""
    try:
        return f"{path.name} sha256 {digest_of(path)[:16]}"
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
        if value is not None and not low <= value <= high:
            most = "" if high == math.inf else f" and at most {high:g}"
            least = "more than 0" if low == _ABOVE_0 else f"at least {low:g}"
            raise RunError(f"{_option(name)} is {value}, expected {least}{most}")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _require_trainable(config: TrainConfig, n_samples: int) -> None:
    if config.gradient_cosine != "off" and config.ranks > 1:
        raise RunError(
            f"--gradient-cosine {config.gradient_cosine} compares gradients of whole batches, which "
            f"{config.ranks} processes share; leave it out, or train in one process"
        )
    smallest = n_samples // -(-n_samples // config.batch_size)
    if smallest < config.ranks:
        raise RunError(
            f"a step has {smallest} samples and {config.ranks} processes share them; raise --batch-size"
        )


def _require_fitting_loss(config: TrainConfig, lesson: Lesson) -> None:
    several = lesson.index.presence is not None
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
