"""The method of a run: its student, and what else is trained with it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from pipeline.runtime import student_precision
from pipeline.train.config import TrainConfig
from sskt.errors import RunError
from sskt.losses import LOGITS_LOSSES, VECTOR_LOSSES
from sskt.methods import METHODS, PRETEXT_METHODS, Method, Parts, method_named, readers
from sskt.sources import LOGITS_OUTPUT, MAP, kind_of, map_shape, network_of, output_kind, output_of
from sskt.students import BACKBONES, Backbone, build_backbone, sizes_seen

# how sources are used, which only methods with sources read
OF_SOURCES = ("labels", "teacher_bn")
OF_PROBE = ("probe_weight", "probe_temperature", "probe_views")


def readers_of(setting: str) -> list[str]:
    """The methods that read a setting; all of them if it does not belong to any method."""
    if setting in OF_SOURCES:
        return [name for name, method in METHODS.items() if method.needs]
    return readers(setting) or [*METHODS, *PRETEXT_METHODS]


def require_read(method: str, asked: Mapping[str, Any]) -> None:
    """Raise RunError for a given setting that `method` would ignore."""
    for name, value in asked.items():
        able = readers_of(name)
        if method not in able:
            said = "" if value is True else f" {value}"
            raise RunError(
                f"--{name.replace('_', '-')}{said}: --method {method} does not read it, "
                f"{' and '.join(able)} would; leave it out, or choose another method"
            )


def require_heads(method: str, asked: Mapping[str, Any], sources: Sequence[str]) -> None:
    """Raise RunError for a given setting of source heads where a probe is the only source, which has none."""
    if not sources or not all(kind_of(name).is_fitted for name in sources):
        return
    for name in method_named(method).of_heads:
        if name in asked:
            said = "" if asked[name] is True else f" {asked[name]}"
            raise RunError(
                f"--{name.replace('_', '-')}{said} is for the heads of sources, and {sources[0]}, the only "
                f"source, has none; name another source beside it, use --preset paper, or leave it out"
            )


def require_probe(asked: Mapping[str, Any], sources: Sequence[str]) -> None:
    """Raise RunError for a given setting of a probe where none is among the sources."""
    if any(kind_of(name).is_fitted for name in sources):
        return
    for name in OF_PROBE:
        if name in asked:
            joined = f"probe:{'+'.join(sources)}" if sources else "probe"
            raise RunError(
                f"--{name.replace('_', '-')} {asked[name]} is for a probe, and there is none among the "
                f"sources; add --source {joined}, or leave it out"
            )


def require_learnable(config: TrainConfig) -> None:
    """Raise RunError for a source output that the run's method or loss cannot learn from."""
    learns = method_named(config.method).needs
    by_classes = config.method in readers("aux_loss") and config.aux_loss in LOGITS_LOSSES
    for name in config.sources:
        output = output_of(name)
        if output_kind(output) == MAP:
            _require_maps_learnable(config, name, learns)
        elif learns and output not in learns:
            raise RunError(
                f"--method {config.method} learns from {_listed(learns)}, and {name} is an embedding; "
                f"name {network_of(name)} or probe:{name}, or choose another method"
            )
        if learns and output != LOGITS_OUTPUT and by_classes:
            raise RunError(
                f"--aux-loss {config.aux_loss} compares classes, and {name} is an embedding; use --aux-loss "
                f"{' or '.join(VECTOR_LOSSES)}"
            )
    _require_one_layer([name for name in config.sources if output_kind(output_of(name)) == MAP])


def _require_one_layer(names: Sequence[str]) -> None:
    """Raise RunError for maps of different layers or grids, with which one layer of a student is compared."""
    for first, other in pairwise(names):
        if output_of(first) != output_of(other):
            raise RunError(
                f"{first} is maps of {output_of(first)} and {other} of {output_of(other)}; name the same "
                f"layer and grid of every teacher"
            )


def _require_maps_learnable(config: TrainConfig, name: str, learns: tuple[str, ...]) -> None:
    """Raise RunError for maps that the run's method does not learn from, or where images are mixed."""
    if config.mixup > 0 or config.cutmix > 0:
        option = "--mixup" if config.mixup > 0 else "--cutmix"
        raise RunError(
            f"{option} mixes images, and {name} of a mixture is no mixture of maps; leave {option} out, or "
            f"learn from {network_of(name)} alone"
        )
    if MAP not in learns:
        raise RunError(
            f"--method {config.method} learns from {_listed(learns)}, and {name} is maps of a layer; name "
            f"{network_of(name)}, or choose another method"
        )


def _listed(words: tuple[str, ...]) -> str:
    words = tuple("maps" if word == MAP else word for word in words)
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def choose_precision(amp: str, method: str, device: torch.device) -> str:
    """The student's precision; see `student_precision`. Raises RunError if the method cannot use fp16."""
    chosen = student_precision(amp, device)
    if chosen != "fp16" or method_named(method).fp16:
        return chosen
    if amp == "fp16":
        raise RunError(
            f"--amp fp16: --method {method} takes gradients of gradients, which leave float16's range; use "
            f"bf16 or fp32"
        )
    return "fp32"


def open_method(config: TrainConfig, backbone: Backbone, source_classes: Mapping[str, int]) -> Method:
    """Build a run's method around `backbone`, on the CPU; new weights come from torch's global generator.

    `source_classes`: the number of classes of each source, of maps their numbers; empty without sources.
    Raises RunError for settings that exclude each other.
    """
    method, settings = method_named(config.method), config.settings
    if config.compiled and (what := method.inner_gradients(settings)) is not None:
        raise RunError(
            f"{what} takes gradients within its step, which cannot be compiled; leave --compile out"
        )
    _require_able(method, config)
    maps = {name: n for name, n in source_classes.items() if output_kind(output_of(name)) == MAP}
    parts = Parts(
        backbone,
        partial(_another, config, backbone),
        len(config.classes),
        {name: n for name, n in source_classes.items() if name not in maps},
        channels_last=config.channels_last,
        init=config.init,
        dropout=config.dropout,
        freeze_until=config.freeze_until,
        probe=next((name for name in source_classes if kind_of(name).is_fitted), None),
        source_maps={name: map_shape(output_of(name), n) for name, n in maps.items()},
    )
    return method.build(settings, parts)


def _another(config: TrainConfig, backbone: Backbone) -> Backbone:
    """A second network like the first, with the same pretrained weights, or with new random ones."""
    if config.finetune_from is not None:
        return copy.deepcopy(backbone)
    if config.is_own:
        raise RunError(
            f"--method {config.method} builds its own networks; name one with --model, such as "
            f"{', '.join(BACKBONES)}"
        )
    return build_backbone(
        config.model, clip_mean=config.clip_mean, sizes=sizes_seen(config.plan, config.student_frames)
    )


def _require_able(method: type[Method], config: TrainConfig) -> None:
    """Raise RunError if a run needs something that its method does not support."""
    unable = {
        "several labels per image": config.primary_loss == "bce" and not method.several_labels,
        "several processes": config.ranks > 1 and not method.several_processes,
        "--mixup or --cutmix": (config.mixup > 0 or config.cutmix > 0) and not method.mixes,
        "--compile": config.compiled and not method.compiles,
        f"--optimizer {config.optimizer}": config.optimizer != "sgd" and not method.adam,
        "images without labels": bool(config.unlabelled) and not method.reads_unlabelled,
    }
    for what, asked in unable.items():
        if asked:
            raise RunError(
                f"--method {config.method} does not support {what}; leave that out, or choose another method"
            )
