"""The method of a run: its student, and whatever else learns beside it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from pipeline.runtime.execution import student_precision
from pipeline.train.config import EARLIER_MEAN, OWN, OWN_MEAN, TrainConfig
from sskt.errors import RunError
from sskt.methods import AUXILIARY, Dml, Kd, Maxl, Method, Sskt, Terms
from sskt.normalise import CLIP_MEANS, RELEASED_MEAN
from sskt.students import BACKBONES, Backbone, build_backbone
from sskt.students.student import Student

# the settings that not every method reads, and the methods that do
READ_BY = {
    "primary_loss": ("sskt", "scratch", "kd", "dml"),  # maxl's losses are focal
    "label_smoothing": ("sskt", "scratch", "kd", "dml"),
    "aux_loss": ("sskt", "kd"),
    "kd_reduction": ("sskt", "kd"),
    "temperature": ("sskt", "kd"),
    "alpha": ("sskt", "kd", "maxl"),
    "labels": ("sskt", "kd"),
    "teacher_bn": ("sskt", "kd"),
    "gradient_cosine": ("sskt",),
    "transfer_module": ("sskt", "maxl"),
    "peers": ("dml",),
    "psi": ("maxl",),
}


def require_read(method: str, asked: Mapping[str, Any]) -> None:
    """Raise RunError for a setting that was asked for and that `method` would leave unread."""
    for name, value in asked.items():
        readers = READ_BY.get(name, (method,))
        if method not in readers:
            said = "" if value is True else f" {value}"
            raise RunError(
                f"--{name.replace('_', '-')}{said}: --method {method} does not read it, "
                f"{' and '.join(readers)} would; leave it out, or choose another method"
            )


def choose_precision(amp: str, method: str, device: torch.device) -> str:
    """What a student computes in; see `student_precision`. Raises RunError for fp16 with maxl."""
    chosen = student_precision(amp, device)
    if method == "maxl" and chosen == "fp16":
        if amp == "fp16":
            raise RunError(
                "--amp fp16: --method maxl takes gradients of gradients, which leave float16's range; use "
                "bf16 or fp32"
            )
        return "fp32"
    return chosen


def choose_clip_mean(asked: str, model: str) -> str:
    """What a student takes off its clips, as a config has it. Raises RunError for a mean that is unknown, or
    that the student would not read.
    """
    if asked not in CLIP_MEANS:
        raise RunError(f"--clip-mean is {asked!r}, expected one of {', '.join(CLIP_MEANS)}")
    if model.startswith("resnet3d"):
        return asked
    if asked != RELEASED_MEAN:
        raise RunError(
            f"--clip-mean {asked} is of the resnet3d networks, this student is {model}; leave it out"
        )
    return OWN_MEAN if model.startswith(OWN) else EARLIER_MEAN


def open_method(config: TrainConfig, backbone: Backbone, source_classes: Mapping[str, int]) -> Method:
    """Build it around `backbone`, on the CPU; weights that are new come from torch's global generator.

    `source_classes`: the number of classes of each source, none where nobody teaches. Raises RunError for
    settings that do not go together.
    """
    terms = Terms(
        alpha=config.alpha,
        temperature=config.temperature,
        aux_loss=config.aux_loss,
        kd_reduction=config.kd_reduction,
        primary_loss=config.primary_loss,
        label_smoothing=config.label_smoothing,
    )
    layout = {"channels_last": config.channels_last}
    n_classes = len(config.classes)
    if config.compiled and (config.method == "maxl" or config.gradient_cosine != "off"):
        what = "--method maxl" if config.method == "maxl" else f"--gradient-cosine {config.gradient_cosine}"
        raise RunError(
            f"{what} takes gradients within its step, which cannot be compiled; leave --compile out"
        )

    def student(of: Backbone, heads: Mapping[str, int]) -> Student:
        made = Student(of, n_classes, heads, config.transfer_module, init=config.init, dropout=config.dropout)
        if config.freeze_until is not None:
            made.freeze_until(config.freeze_until)
        return made

    if config.method == "kd":
        return Kd(student(backbone, {}), terms, teachers=source_classes, **layout)
    if config.method == "dml":
        others = [_another(config, backbone) for _ in range(config.peers - 1)]
        return Dml([student(each, {}) for each in (backbone, *others)], terms, **layout)
    if config.method == "maxl":
        _require_maxl_possible(config)
        n_made = n_classes * config.psi
        pupil = student(backbone, {AUXILIARY: n_made})
        generator = Student(
            _another(config, backbone), n_made, {}, False, init=config.init, dropout=config.dropout
        )
        return Maxl(pupil, generator, terms, psi=config.psi, **layout)
    pupil = student(backbone, source_classes)
    return Sskt(pupil, terms, gradient_cosine=config.gradient_cosine, gates=config.gates, **layout)


def _another(config: TrainConfig, backbone: Backbone) -> Backbone:
    """A second network like the first: with the same pretrained weights, or fresh ones of its own."""
    if config.finetune_from is not None:
        return copy.deepcopy(backbone)
    if config.model not in BACKBONES:
        raise RunError(
            f"--method {config.method} builds its own networks; name one of {', '.join(BACKBONES)}"
        )
    return build_backbone(config.model, clip_mean=config.clip_mean)


def _require_maxl_possible(config: TrainConfig) -> None:
    unable = {
        "several labels a picture": config.primary_loss == "bce",
        "several processes": config.ranks > 1,
        "--mixup or --cutmix": config.mixup > 0 or config.cutmix > 0,
    }
    for what, asked in unable.items():
        if asked:
            raise RunError(f"--method maxl cannot do with {what}; leave that out, or choose another method")
