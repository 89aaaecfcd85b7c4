"""A run's config, from what the user says and the recipe; refuses settings that the method would ignore."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from pipeline.data import Augmentation, Plan, family_of, parse_target
from pipeline.runtime import Execution, World, channels_last, coerce
from pipeline.train.backbone import choose_clip_mean, choose_frames, model_name, source_of
from pipeline.train.config import OWN, Settings, TrainConfig, weights_name
from pipeline.train.method import choose_precision, require_heads, require_probe, require_read
from pipeline.train.presets import preset_choice
from sskt.errors import RunError, SettingError
from sskt.losses import VECTOR_LOSSES
from sskt.methods import GATES, METHODS, PRETEXT_METHODS, method_named
from sskt.normalise import RELEASED_MEAN
from sskt.optimiser import optimizer_defaults
from sskt.recipes import BY_SIZE, FRACTIONS, SETTINGS, Recipe, recipe_for
from sskt.students import DROPOUTS, Backbone, choose_init, is_reference

_DEFAULTS: Settings = {  # of settings that neither a recipe nor a method has
    "method": "sskt",
    "preset": "paper",
    "recipe": None,
    "sources": (),
    "labels": "auto",
    "views": None,
    "teacher_bn": "frozen",
    "probe_views": None,
    "val_share": None,
    "labels_per_class": None,
    "labelled_share": None,
    "labelled_list": None,
    "unlabelled": (),
    "freeze_until": None,
    "init": None,
    "clip_mean": RELEASED_MEAN,
    "amp": "auto",
    "compiled": False,
    "deterministic": False,
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
    finetune_from: Path | None = None,
    **settings: Unpack[Settings],
) -> TrainConfig:
    """A run's config as far as it is known before its data and sources are opened.

    `model` is the student by name, or the caller's own backbone. Milestones and a plateau's patience move
    with the epochs. Raises RunError for a setting that is unknown, that the method does not read, or that no
    training can have.
    """
    asked: Settings = {**_DEFAULTS, **settings}
    method, finetuned = asked["method"], finetune_from is not None
    frames, model = choose_frames(target, model, augmentation), model_name(model)
    chosen = preset_choice(
        asked["preset"] or "paper",
        target,
        method,
        recipe=asked["recipe"],
        sources=coerce.texts(asked["sources"], "sources"),
        labels=asked["labels"],
        probe_views=asked["probe_views"],
        finetuned=finetuned,
        heads_told=_tells_of_heads(method, settings),
    )
    _require_pretrained(chosen.recipe, model, finetuned=finetuned)
    recipe = _recipe_of(target, method, chosen.recipe, finetuned=finetuned)
    given = _given(settings)
    _require_read(method, recipe, given, asked, chosen.sources)
    return TrainConfig(
        target=target,
        model=model,
        seed=seed,
        limit=limit,
        eval_every=eval_every,
        finetune_from=None if finetune_from is None else weights_name(finetune_from),
        amp=choose_precision(asked["amp"], method, execution.device),
        channels_last=channels_last(execution.device),
        ranks=world.size,
        init=choose_init(model, asked["init"]),
        clip_mean=choose_clip_mean(asked["clip_mean"], model),
        dropout=DROPOUTS.get(model, 0.0),
        student_frames=frames,
        model_sha256=source_of(model),
        recipe=chosen.recipe,
        sources=chosen.sources,
        probe_views=chosen.probe_views or "mean",
        **_plain_settings(asked),
        **_shown(augmentation, target, method),
        **_UNSETTLED,
        **{name: _plain(value) for name, value in _chosen(method, recipe, given).items()},
    )


def _require_pretrained(recipe: str, model: str, *, finetuned: bool) -> None:
    """Raise RunError for the finetune recipe of a student whose weights are random; those of the caller's
    own network may not be.
    """
    brings_weights = model.startswith(OWN) or is_reference(model)
    if recipe == "finetune" and not finetuned and not brings_weights:
        raise RunError(
            f"--recipe finetune is for pretrained weights, and {model} would start from random ones; add "
            f"--pretrained or --finetune-from FILE, or use another recipe"
        )


def _recipe_of(target: str, method: str, name: str, *, finetuned: bool) -> Recipe:
    """A recipe, with the loss that the user's own data need."""
    recipe, spec = recipe_for(target, method, finetuned=finetuned, name=name), parse_target(target)
    return replace(recipe, primary_loss="bce") if family_of(spec).has_several_labels(spec) else recipe


def _tells_of_heads(method: str, settings: Settings) -> bool:
    """Whether the user set something of source heads; a value of the recipe's is a choice even if usual."""
    usual = {f.name: f.default for f in fields(method_named(method).Config) if f.name not in SETTINGS}
    told = {name: value for name, value in settings.items() if name in method_named(method).of_heads}
    return any(value not in (None, usual.get(name)) for name, value in told.items())


def _given(settings: Settings) -> dict[str, Any]:
    """The settings of a recipe or a method that the user gives."""
    named = {name: value for name, value in settings.items() if name not in _DEFAULTS and value is not None}
    given = {name: coerce.setting(name, value) for name, value in named.items()}
    for name in BY_SIZE:  # where 0 would mean that it is left to the number of images
        if given.get(name) == 0:
            least = "more than 0" if name == "lr" else "at least 1"
            raise SettingError(name, f"is {given[name]}, expected {least}")
    return given


def _plain_settings(asked: Settings) -> dict[str, Any]:
    """The settings that are recorded as given, with their types normalised."""
    n_labels, labelled_list = asked["labels_per_class"], asked["labelled_list"]
    if n_labels is not None and labelled_list is not None:
        raise RunError(
            f"--labels-per-class {n_labels} and --labelled {labelled_list} both say which samples keep their "
            f"labels; leave one out"
        )
    return {
        "method": asked["method"],
        "labels": asked["labels"],
        "teacher_bn": asked["teacher_bn"],
        "views": coerce.whole_or_none(asked["views"], "views"),
        "val_share": asked["val_share"],
        "labels_per_class": coerce.whole_or_none(n_labels, "labels_per_class"),
        "labelled_share": coerce.number_or_none(asked["labelled_share"], "labelled_share"),
        "labelled_list": None if labelled_list is None else str(coerce.path(labelled_list, "labelled_list")),
        "unlabelled": coerce.texts(asked["unlabelled"], "unlabelled"),
        "freeze_until": asked["freeze_until"],
        "compiled": asked["compiled"],
        "deterministic": asked["deterministic"],
    }


_UNSETTLED: dict[str, Any] = {"classes": (), "contents": {}, "source_weights": {}, "chosen_on": None}


def _shown(augmentation: Augmentation, target: str, method: str) -> dict[str, Any]:
    """The student's views: plans and augmentation."""
    spec = parse_target(target)
    if method in PRETEXT_METHODS:
        plan: Plan = augmentation.pretext_plan(spec, method)
    else:
        plan = augmentation.training_plan(spec)
    return {
        "plan": plan.to_dict(),
        "eval_plan": augmentation.evaluation_plan(spec).to_dict(),
        "augmentation": augmentation.to_dict(),
    }


def _chosen(method: str, recipe: Recipe, given: Mapping[str, Any]) -> dict[str, Any]:
    """A value for each setting of a recipe or a method: the given one, else the recipe's or the method's."""
    given = dict(given)
    if "epochs" in given:
        given.setdefault("milestones", recipe.milestones_in(given["epochs"]))
        if given.get("schedule", recipe.schedule) == "plateau":
            given.setdefault("patience", recipe.patience_in(given["epochs"]))
    if given.get("aux_loss", recipe.aux_loss) in VECTOR_LOSSES:
        given.setdefault("alpha", 1.0)  # these losses are of order 1, T^2 times a cross-entropy of order 50
        if given.get("temperature", recipe.temperature) != recipe.temperature:
            raise RunError(
                f"--temperature {given['temperature']} softens classes, and --aux-loss "
                f"{given['aux_loss']} compares vectors; leave it out"
            )
    given = optimizer_defaults(given.get("optimizer"), recipe.optimizer) | given
    if (
        given.get("graph_logits") in ("cosine", "off")
        and given.get("temperature", recipe.temperature) != recipe.temperature
    ):
        raise RunError(
            f"--temperature {given['temperature']} softens probabilities, and --graph-logits "
            f"{given['graph_logits']} compares {'logits' if given['graph_logits'] == 'cosine' else 'none'}; "
            f"leave it out"
        )
    values = _usual(recipe) | given
    if values["primary_loss"] != "ce" and "label_smoothing" not in given:
        values["label_smoothing"] = 0.0  # which is only for ce
    for name in ("warm_up", "cool_down"):
        able = [schedule for schedule, names in FRACTIONS.items() if name in names]
        if values["schedule"] not in able and name in given:
            option = "--" + name.replace("_", "-")
            raise RunError(
                f"{option} is for --schedule {' or '.join(able)}, this run has {values['schedule']}; leave "
                f"it out"
            )
    if values["kd_reduction"] is None:
        values["kd_reduction"] = method_named(method).reduction(values["primary_loss"])
    elif values["aux_loss"] != "kd":
        raise RunError(
            f"--kd-reduction {values['kd_reduction']} is for --aux-loss kd, this run has "
            f"{values['aux_loss']}; leave it out"
        )
    if values["gradient_cosine"] == "weigh":
        values["gates"] = GATES[0]
    values["ema_matched"] = values["ema"] > 0
    return values


def _usual(recipe: Recipe) -> dict[str, Any]:
    """The defaults: of the recipe, of methods, and what is off."""
    every = {
        f.name: f.default if f.default_factory is MISSING else f.default_factory()
        for method in METHODS.values()
        for f in fields(method.Config)
    }
    known = {f.name for f in fields(TrainConfig)} - {"gates", "weight_of_class", *SETTINGS}
    defaults = {name: value for name, value in every.items() if name in known}
    off = {"clip_norm": None, "mixup": 0.0, "cutmix": 0.0}
    of_recipe = {name: getattr(recipe, name) for name in SETTINGS}
    return {**of_recipe, **defaults, **off, "kd_reduction": None}  # None: depends on the method


def _require_read(
    method: str, recipe: Recipe, given: Mapping[str, Any], asked: Settings, sources: tuple[str, ...]
) -> None:
    """Raise RunError for an unknown setting, or one that the method would ignore, with these sources."""
    usual = _usual(recipe)
    if strange := [name for name in given if name not in usual]:
        raise RunError(f"{strange[0]} is not a setting of a run, expected one of {', '.join(usual)}")
    changed = {name: value for name, value in given.items() if value != usual[name]}
    for name in ("labels", "teacher_bn"):  # which say how sources are asked
        if asked[name] != _DEFAULTS[name]:
            changed[name] = asked[name]
    require_read(method, changed)
    if asked["probe_views"] == "own":  # not the mean, which is usual
        changed["probe_views"] = "own"
    require_heads(method, changed, sources)
    require_probe(changed, sources)


def _plain(value: Any) -> Any:
    """NumPy numbers as Python's: a checkpoint with NumPy's could not be read again."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value
