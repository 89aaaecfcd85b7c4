"""The settings of a run, from what was asked and the paper's recipe; what does not go together is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.augmentation import Augmentation
from pipeline.data.datasets.dataset import Dataset
from pipeline.data.datasets.registry import parse_target
from pipeline.runtime import Execution, World, channels_last, coerce
from pipeline.source_outputs import SourceOutputs
from pipeline.train.config import PRECISIONS, TrainConfig
from pipeline.train.data import TrainingData
from pipeline.train.method import (
    choose_clip_mean,
    choose_frames,
    choose_precision,
    model_name,
    require_read,
)
from pipeline.train.presets import preset_choice
from pipeline.train.teacher_temperatures import settle_temperatures
from sskt.download import known_digest_of
from sskt.errors import RunError
from sskt.losses import VECTOR_LOSSES
from sskt.methods import GATES, METHODS, method_named
from sskt.normalise import RELEASED_MEAN
from sskt.optimiser import ADAM_LR, OPTIMIZERS, require_adam, require_nesterov
from sskt.recipes import SETTINGS, Recipe, recipe_for
from sskt.schedules import SCHEDULES, require_trapezoid
from sskt.students import BACKBONES, CLIP_BACKBONES, DROPOUTS, Backbone
from sskt.students.average import require_decay
from sskt.students.initialise import choose_init

_CHOICES = {
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "amp": PRECISIONS,
}
_ABOVE_0 = math.ulp(0)
_RANGES = {
    "views": (1, math.inf),
    "epochs": (1, math.inf),
    "batch_size": (1, math.inf),
    "lr": (_ABOVE_0, math.inf),
    "gamma": (_ABOVE_0, math.inf),
    "momentum": (0, 1),
    "dampening": (0, 1),
    "warm_up": (0, 1),
    "cool_down": (0, 1),
    "weight_decay": (0, math.inf),
    "clip_norm": (_ABOVE_0, math.inf),
    "eval_every": (1, math.inf),
    "mixup": (0, math.inf),
    "cutmix": (0, math.inf),
    "labelled_share": (_ABOVE_0, 1),
}


def resolve(
    target: str,
    *,
    execution: Execution,
    world: World,
    augmentation: Augmentation,
    model: str | Backbone,
    seed: int = 0,
    limit: int | None = None,
    eval_every: int = 1,
    method: str = "sskt",
    preset: str = "paper",
    recipe: str | None = None,
    sources: str | Sequence[str] = (),
    labels: str = "auto",
    views: int | None = None,
    teacher_bn: str = "frozen",
    val_share: float | None = None,
    labels_per_class: int | None = None,
    labelled_share: float | None = None,
    labelled_list: Path | str | None = None,
    unlabelled: str | Sequence[str] = (),
    probe_views: str | None = None,
    finetune_from: Path | None = None,
    freeze_until: str | None = None,
    init: str | None = None,
    clip_mean: str = RELEASED_MEAN,
    amp: str = "auto",
    compiled: bool = False,
    deterministic: bool = False,
    **settings: Any,
) -> TrainConfig:
    """A run's config as far as it is known before its data and sources are opened.

    `model` is the student by name, or the caller's own backbone; `preset` one of
    `pipeline.train.presets.PRESETS`, `recipe` of `sskt.recipes.RECIPES`; `settings` are a recipe's
    (`sskt.recipes.SETTINGS`), those of the method (the fields of its Config), and clip_norm, mixup and
    cutmix; None and what is left out is the usual. Milestones and a plateau's patience move with the epochs.
    Raises RunError for a setting that is unknown, that the method does not read, or that no training can
    have.
    """
    method_named(method)  # refuses one that is unknown
    if labels_per_class is not None and labelled_list is not None:
        raise RunError(
            f"--labels-per-class {labels_per_class} and --labelled {labelled_list} both say which samples "
            f"keep their labels; leave one out"
        )
    frames, model = choose_frames(parse_target(target), model), model_name(model)
    chosen = preset_choice(
        preset,
        target,
        method,
        recipe=recipe,
        sources=coerce.texts(sources, "sources"),
        labels=labels,
        probe_views=probe_views,
    )
    usual = recipe_for(target, method, finetuned=finetune_from is not None, name=chosen.recipe)
    _require_read(method, usual, settings, labels, teacher_bn)
    return TrainConfig(
        target=target,
        model=model,
        method=method,
        recipe=chosen.recipe,
        sources=chosen.sources,
        labels=labels,
        teacher_bn=teacher_bn,
        views=coerce.whole_or_none(views, "views"),
        finetune_from=None if finetune_from is None else weights_name(finetune_from),
        freeze_until=freeze_until,
        seed=seed,
        limit=limit,
        eval_every=eval_every,
        amp=choose_precision(amp, method, execution.device),
        compiled=compiled,
        channels_last=channels_last(execution.device),
        deterministic=deterministic,
        ranks=world.size,
        init=choose_init(model, init),
        clip_mean=choose_clip_mean(clip_mean, model),
        dropout=DROPOUTS.get(model, 0.0),
        val_share=val_share,
        labels_per_class=coerce.whole_or_none(labels_per_class, "labels_per_class"),
        labelled_share=coerce.number_or_none(labelled_share, "labelled_share"),
        labelled_list=None if labelled_list is None else str(coerce.path(labelled_list, "labelled_list")),
        unlabelled=coerce.texts(unlabelled, "unlabelled"),
        probe_views=chosen.probe_views or "mean",
        student_frames=frames,
        **_shown(augmentation, target),
        **_UNSETTLED,
        **{name: _plain(value) for name, value in _chosen(method, usual, settings).items()},
    )


_UNSETTLED: dict[str, Any] = {"classes": (), "contents": {}, "source_weights": {}, "chosen_on": None}


def _shown(augmentation: Augmentation, target: str) -> dict[str, Any]:
    """What the student is shown."""
    spec = parse_target(target)
    return {
        "plan": augmentation.training_plan(spec).to_dict(),
        "eval_plan": augmentation.evaluation_plan(spec).to_dict(),
        "augmentation": asdict(augmentation),
    }


def _chosen(method: str, recipe: Recipe, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A value for each setting of a recipe and of the methods: what is given, else the recipe's or the
    method's.
    """
    given = {name: coerce.setting(name, value) for name, value in settings.items() if value is not None}
    if "epochs" in given:
        given.setdefault("milestones", recipe.milestones_in(given["epochs"]))
        if given.get("schedule", recipe.schedule) == "plateau":
            given.setdefault("patience", recipe.patience_in(given["epochs"]))
    if given.get("aux_loss", recipe.aux_loss) in VECTOR_LOSSES:
        given.setdefault("alpha", 1.0)  # they are of order 1, and T^2 times a cross-entropy of order 50
        if given.get("temperature", recipe.temperature) != recipe.temperature:
            raise RunError(
                f"--temperature {given['temperature']} softens classes, and --aux-loss "
                f"{given['aux_loss']} compares vectors; leave it out"
            )
    if given.get("optimizer") == "adam" and recipe.optimizer != "adam":  # the recipe's are SGD's
        given = {"lr": ADAM_LR, "dampening": 0.0, "nesterov": False} | given
    if (
        given.get("graph_logits") == "cosine"
        and given.get("temperature", recipe.temperature) != recipe.temperature
    ):
        raise RunError(
            f"--temperature {given['temperature']} softens probabilities, and --graph-logits cosine compares "
            f"logits; leave it out"
        )
    values = _usual(recipe) | given
    if values["primary_loss"] != "ce" and "label_smoothing" not in given:
        values["label_smoothing"] = 0.0  # which is of ce alone
    for name in ("warm_up", "cool_down"):
        if values["schedule"] != "trapezoid" and name in given:
            raise RunError(
                f"{_option(name)} is of --schedule trapezoid, this run has {values['schedule']}; leave it out"
            )
    if values["kd_reduction"] is None:
        values["kd_reduction"] = method_named(method).reduction(values["primary_loss"])
    elif values["aux_loss"] != "kd":
        raise RunError(
            f"--kd-reduction {values['kd_reduction']} is of --aux-loss kd, this run has "
            f"{values['aux_loss']}; leave it out"
        )
    if values["gradient_cosine"] == "weigh":
        values["gates"] = GATES[0]
    return values


def _usual(recipe: Recipe) -> dict[str, Any]:
    """The settings of a recipe, those of methods that no recipe has, and what is off by default."""
    every = {
        f.name: f.default if f.default_factory is MISSING else f.default_factory()
        for method in METHODS.values()
        for f in fields(method.Config)
    }
    known = {f.name for f in fields(TrainConfig)} - {"gates", *SETTINGS}
    defaults = {name: value for name, value in every.items() if name in known}
    off = {"clip_norm": None, "mixup": 0.0, "cutmix": 0.0}
    of_recipe = {name: getattr(recipe, name) for name in SETTINGS}
    return {**of_recipe, **defaults, **off, "kd_reduction": None}  # None: depends on the method


def _require_read(
    method: str, recipe: Recipe, settings: Mapping[str, Any], labels: str, teacher_bn: str
) -> None:
    """Raise RunError for a setting that is unknown, or that the method would not read."""
    method_named(method)  # refuses one that is unknown
    usual = _usual(recipe)
    given = {name: coerce.setting(name, value) for name, value in settings.items() if value is not None}
    if strange := [name for name in given if name not in usual]:
        raise RunError(f"{strange[0]} is no setting of a run, expected one of {', '.join(usual)}")
    changed = {name: value for name, value in given.items() if value != usual[name]}
    of_sources = {"labels": (labels, "auto"), "teacher_bn": (teacher_bn, "frozen")}
    changed |= {name: value for name, (value, default) in of_sources.items() if value != default}
    require_read(method, changed)


def settle(config: TrainConfig, data: TrainingData) -> TrainConfig:
    """`config` with what its data and sources settle. Raises RunError for settings that the data do not
    fit.
    """
    outputs = data.source_outputs
    config = replace(
        config,
        classes=data.dataset.classes,
        sources=tuple(outputs.n_classes) if outputs else (),
        labels=outputs.kind if outputs else "none",
        views=outputs.views if outputs else config.views,
        contents=dict(data.contents),
        source_weights=dict(outputs.weights_sha256) if outputs else {},
        contracts=declared_of(outputs) if outputs else {},
        val_share=data.val_share,
        chosen_on=data.chosen_on,
        unlabelled=tuple(pool.name for pool in data.pools),
        labelled_list=config.labelled_list and weights_name(Path(config.labelled_list)),
        teacher_temperature=settle_temperatures(config, data),
    )
    _require_sound(config)
    _require_trainable(config, len(data.dataset))
    _require_labels(config, data.dataset)
    _require_fitting_loss(config, data)
    return config


def declared_of(outputs: SourceOutputs) -> dict[str, Any]:
    """What is declared of each source, as plain data; sources of which nothing is are left out."""
    declared = {name: contract.to_dict() for name, contract in outputs.contracts.items()}
    return {name: told for name, told in declared.items() if told}


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's: a checkpoint with others could not be read again."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def require_reads(backbone: Backbone, config: TrainConfig) -> None:
    """Raise RunError for a network for clips where the target holds pictures."""
    spec = parse_target(config.target)
    if backbone.reads_clips and not spec.holds_videos:
        able = [name for name in BACKBONES if name not in CLIP_BACKBONES]
        raise RunError(
            f"--model {config.model} reads clips, and {spec.name} holds pictures; "
            f"choose one of {', '.join(able)}"
        )


def weights_name(path: Path) -> str:
    """A file as a config names it: by its name and sha256. Raises RunError if it cannot be read."""
    try:
        return f"{path.name} sha256 {known_digest_of(path)[:16]}"
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror or error}); check its path") from None


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
    _ = config.settings  # which checks itself
    require_trapezoid(config.warm_up, config.cool_down)
    require_decay(config.ema)
    if config.optimizer == "adam":
        require_adam(config.momentum, config.dampening, config.nesterov)
    if config.nesterov:
        require_nesterov(config.momentum, config.dampening)
    if config.schedule == "plateau" and config.chosen_on is None:
        raise RunError(
            "--schedule plateau waits for a loss that stands still, and --val-share 0 leaves none to "
            "look at; raise --val-share, or choose multistep or cosine"
        )


def _require_labels(config: TrainConfig, dataset: Dataset) -> None:
    n, n_labelled = len(dataset), len(dataset.labelled)
    if config.labelled_share is not None and n_labelled == n:
        raise RunError(
            f"--labelled-share {config.labelled_share:g} mixes labelled and unlabelled samples, and all "
            f"{n:,} training samples of {config.target} have a label; leave it out, or add some without by "
            f"--unlabelled"
        )
    if not n_labelled:
        raise RunError(f"{config.target}: none of {n:,} training samples has a label; label some")


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


def _require_fitting_loss(config: TrainConfig, data: TrainingData) -> None:
    several = data.dataset.multi_hot is not None
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
