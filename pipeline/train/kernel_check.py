"""Find the layers of a student for which this machine's fast kernels are wrong (`pipeline.runtime.kernels`),
before its first step and before it is scored. A run records them, and computes them in plain fp32 wherever it
continues.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from cache import Location
from pipeline.data import ClipPlan, Plan, geometry_of
from pipeline.runtime import How, World, sentence, wrong_layers
from pipeline.train.config import TrainConfig
from sskt.errors import RunError
from sskt.kernels import compute_plainly
from sskt.methods import Method
from sskt.students import Student

log = logging.getLogger(__name__)


def with_plain_layers(
    config: TrainConfig, method: Method, plan: Plan, device: torch.device, world: World, kept_in: Location
) -> TrainConfig:
    """`config` with the layers of `method` whose kernels are wrong here or on another rank's machine; logs
    what was found. Raises RunError if plain fp32 is wrong as well.
    """
    names, what = _wrong(config, method, plan, device, kept_in)
    found = world.all_gather((names, what))
    if said := next((what for _, what in found if what), ""):
        log.warning(f"{said}; they run in plain fp32")
    return replace(config, plain_layers=tuple(sorted({name for names, _ in found for name in names})))


def require_kernels(
    config: TrainConfig, method: Method, plan: Plan, device: torch.device, kept_in: Location, out: object
) -> None:
    """Raise RunError if the run in `out` would continue with kernels that are wrong on this machine."""
    _, what = _wrong(config, method, plan, device, kept_in)
    if what:
        raise RunError(
            f"{out}: was started with fast kernels that are wrong here: {what}; if it was started on another "
            f"machine, continue there, else train again into another folder: what it has learnt may be "
            f"worthless"
        )


def prepare_to_score(
    student: Student, config: TrainConfig, plan: Plan, device: torch.device, kept_in: Location
) -> None:
    """Let a run's exported student compute as it did in training, and in plain fp32 where this machine's
    kernels are wrong; logs what was found.
    """
    modules = dict(student.named_modules())
    for name in config.plain_layers:
        own = name.removeprefix("student.")
        if own in modules:  # heads for sources and other networks are gone
            compute_plainly(modules[own])
    shape = input_shape(config, plan, 1)
    how = _how(config, device)
    wrong = wrong_layers(
        {"student": student}, shape, how, learns=False, plain=config.plain_layers, kept_in=kept_in
    )
    for names, _ in wrong.values():
        for name in names:
            compute_plainly(modules[name.removeprefix("student.")])
    if wrong:
        log.warning(f"{sentence(wrong, how)}; they run in plain fp32")


def input_shape(config: TrainConfig, plan: Plan, n: int) -> tuple[int, ...]:
    """The shape of `n` samples as the student's network sees them."""
    clips = geometry_of(plan)
    frames = (clips.n_frames,) if isinstance(clips, ClipPlan) and config.student_frames is None else ()
    return (n, 3, *frames, plan.side_px, plan.side_px)


def _wrong(
    config: TrainConfig, method: Method, plan: Plan, device: torch.device, kept_in: Location
) -> tuple[list[str], str]:
    """Names of the layers whose kernels are wrong and not replaced yet, and a sentence on them."""
    networks = {name: module for name, module in method.named_modules() if isinstance(module, Student)}
    # cuDNN chooses by the whole shape; on CPUs one sample shows what a batch does, in a fraction of the time
    n = max(1, config.batch_size // config.ranks) if device.type == "cuda" else 1
    shape, how = input_shape(config, plan, n), _how(config, device)
    wrong = wrong_layers(networks, shape, how, learns=True, plain=config.plain_layers, kept_in=kept_in)
    return [name for names, _ in wrong.values() for name in names], sentence(wrong, how) if wrong else ""


def _how(config: TrainConfig, device: torch.device) -> How:
    return How(config.amp, config.channels_last, device, config.deterministic)
