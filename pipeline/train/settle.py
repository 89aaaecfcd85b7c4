"""Complete a run's config from its data and sources, and refuse settings that exclude each other."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.data import Dataset
from pipeline.source_outputs import SourceOutputs
from pipeline.train.config import PRECISIONS, TrainConfig, weights_name
from pipeline.train.data import TrainingData
from pipeline.train.teacher_temperatures import settle_temperatures
from sskt.errors import RunError, shown
from sskt.methods import method_named, require_choice, require_range
from sskt.optimiser import OPTIMIZERS, require_adam, require_layer_decay, require_nesterov
from sskt.schedules import SCHEDULES, require_trapezoid
from sskt.students import require_decay

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

SHARE_OF_LABELS_ALONE = 0.75  # of a batch, at least; measured on digits (benchmarks/RESULTS.md)


def settle(config: TrainConfig, data: TrainingData) -> TrainConfig:
    """`config`, completed from the opened data and sources. Raises RunError for settings that do not fit the
    data.
    """
    outputs = data.source_outputs
    config = replace(
        config.sized(len(data.dataset)),
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
        labelled_share=_labelled_share(config, data),
        weight_of_class=_weight_of_class(config, data.dataset),
    )
    require_sound(config)
    _require_trainable(config, len(data.dataset))
    _require_labels(config, data.dataset)
    _require_fitting_loss(config, data)
    return config


def declared_of(outputs: SourceOutputs) -> dict[str, Any]:
    """What each source declares, as plain data; those that declare nothing are left out."""
    declared = {name: contract.to_dict() for name, contract in outputs.contracts.items()}
    return {name: told for name, told in declared.items() if told}


def _labelled_share(config: TrainConfig, data: TrainingData) -> float | None:
    """The labelled part of a batch, None for their own. With that one, a student whose primary head learns
    from few labels alone would hardly see them.
    """
    n, n_labelled = len(data.dataset), len(data.dataset.labelled)
    taught = data.probe is not None or method_named(config.method).shares_classes
    if config.labelled_share is not None or taught or n_labelled in (0, n):
        return config.labelled_share
    return max(SHARE_OF_LABELS_ALONE, n_labelled / n)


def _weight_of_class(config: TrainConfig, dataset: Dataset) -> tuple[float, ...]:
    """The weight of each class in the primary loss; none where classes are not weighed. Balanced:
    n / (C * n_c) for a class that has n_c of the n labelled training samples, over which its mean is 1.

    Raises RunError for images of several labels, another loss than ce, and a class without samples.
    """
    if config.class_weights == "off":
        return ()
    if dataset.multi_hot is not None or config.primary_loss != "ce":
        has = "several labels per image" if dataset.multi_hot is not None else config.primary_loss
        raise RunError(
            f"--class-weights {config.class_weights} weighs the classes of --primary-loss ce, and this run "
            f"has {has}; leave it out"
        )
    counts = dataset.class_counts
    if not counts.all():
        raise RunError(
            f"--class-weights {config.class_weights}: no training sample with a label is of class "
            f"{shown(dataset.classes[int(counts.argmin())])}; add some, or leave it out"
        )
    return tuple((counts.sum() / (len(counts) * counts)).tolist())


def require_sound(config: TrainConfig) -> None:
    """Raise RunError for a value that no training can have."""
    for name, choices in _CHOICES.items():
        require_choice(name, getattr(config, name), choices)
    for name, (low, high) in _RANGES.items():
        if (value := getattr(config, name)) is not None:
            require_range(name, value, low, high)
    _ = config.settings  # which checks itself
    if config.schedule == "trapezoid":
        require_trapezoid(config.warm_up, config.cool_down)
    require_layer_decay(config.layer_decay)
    require_decay(config.ema)
    if config.optimizer != "sgd":
        require_adam(config.optimizer, config.momentum, config.dampening, config.nesterov)
    if config.nesterov:
        require_nesterov(config.momentum, config.dampening)
    if config.schedule == "plateau" and config.chosen_on is None:
        raise RunError(
            "--schedule plateau watches a loss, and --val-share 0 leaves none; raise --val-share, or "
            "choose multistep or cosine"
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


def _require_trainable(config: TrainConfig, n_samples: int) -> None:
    if config.gradient_cosine != "off" and config.ranks > 1:
        raise RunError(
            f"--gradient-cosine {config.gradient_cosine} compares gradients of whole batches, which "
            f"{config.ranks} processes share; leave it out, or train in one process"
        )
    smallest = config.smallest_step(n_samples)
    if smallest < config.ranks:
        raise RunError(
            f"a step has {smallest} samples and {config.ranks} processes share them; raise --batch-size"
        )


def _require_fitting_loss(config: TrainConfig, data: TrainingData) -> None:
    several = data.dataset.multi_hot is not None
    if several != (config.primary_loss == "bce"):
        holds, wanted = ("several labels", "bce") if several else ("one label", "ce or focal")
        raise RunError(
            f"--primary-loss {config.primary_loss}: the images of {config.target} have {holds} each; "
            f"use {wanted}"
        )
    if several and config.label_smoothing:
        raise RunError(
            f"--label-smoothing is for one label per image, {config.target} has several; leave it out"
        )
    if config.label_smoothing and config.primary_loss != "ce":
        raise RunError(
            f"--label-smoothing is for --primary-loss ce, this run has {config.primary_loss}; leave it out"
        )
