"""The student's backbone: its name, what it reads, and the weights that it starts from."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from pipeline.data import DatasetSpec, Plan, PretextPlan, parse_target
from pipeline.train.config import EARLIER_MEAN, OWN, OWN_MEAN, TrainConfig
from pipeline.train.kernel_check import input_shape
from sskt.errors import RunError, SettingError
from sskt.normalise import CLIP_MEANS, RELEASED_MEAN
from sskt.recipes import recipe_for
from sskt.sources import CENTER_FRAME
from sskt.students import BACKBONES, CLIP_BACKBONES, Backbone, ResNet3D, build_backbone


def default_model(target: str, method: str) -> str:
    """The student of a run that names none: the recipe's first."""
    return recipe_for(target, method).models[0]


def model_name(model: str | Backbone) -> str:
    """A student as a config names it."""
    return model if isinstance(model, str) else f"{OWN}{type(model).__name__}"


def choose_frames(spec: DatasetSpec, model: str | Backbone) -> str | None:
    """What a student sees of a clip, for the config: the centre frame if it reads images and the target holds
    videos.
    """
    if isinstance(model, Backbone):
        reads_images = not model.reads_clips
    else:
        reads_images = model in BACKBONES and model not in CLIP_BACKBONES
    return CENTER_FRAME if reads_images and spec.holds_videos else None


def choose_clip_mean(asked: str, model: str) -> str:
    """The mean that a student subtracts from clips, for the config. Raises RunError for an unknown mean, or
    one that the student would ignore.
    """
    if asked not in CLIP_MEANS:
        raise SettingError("clip_mean", f"is {asked!r}, expected one of {', '.join(CLIP_MEANS)}")
    if model.startswith("resnet3d"):
        return asked
    if asked != RELEASED_MEAN:
        raise RunError(f"--clip-mean {asked} is for resnet3d networks, this student is {model}; leave it out")
    return OWN_MEAN if model.startswith(OWN) else EARLIER_MEAN


def open_backbone(model: str | Backbone, seed: int, clip_mean: str) -> Backbone:
    """Build a named backbone from the seed, or take the caller's as it is; the heads' weights follow the seed
    in either case.
    """
    torch.manual_seed(seed)
    if isinstance(model, str):
        return build_backbone(model, clip_mean=clip_mean)
    if isinstance(model, ResNet3D) and clip_mean != OWN_MEAN:
        model.take_off(clip_mean)  # in a run from before backbones had another mean
    return model


def reopen_backbone(config: TrainConfig, backbone: Backbone | None, run: Path) -> Backbone:
    """The backbone of an earlier run, with the weights that its seed gives. Raises RunError if it was the
    caller's own, and `backbone` is None.
    """
    if config.is_own and backbone is None:
        raise RunError(f"{run}: its student is {config.model}; continue from Python, with that backbone")
    return open_backbone(backbone or config.model, config.seed, config.clip_mean)


def require_reads(backbone: Backbone, config: TrainConfig) -> None:
    """Raise RunError for a network that reads clips if the target holds images."""
    spec = parse_target(config.target)
    if backbone.reads_clips and not spec.holds_videos:
        able = [name for name in BACKBONES if name not in CLIP_BACKBONES]
        raise RunError(
            f"--model {config.model} reads clips, and {spec.name} holds images; "
            f"choose one of {', '.join(able)}"
        )


def require_runs(backbone: Backbone, config: TrainConfig, plan: Plan, n_samples: int) -> None:
    """Raise RunError for images or batches that are too small for a named network; a copy of it is tried."""
    # `sskt.students.WrappedBackbone` has tried it; and it may not be possible to copy it
    if config.is_own:
        return
    n = min(2, config.smallest_step(n_samples) // config.ranks)
    shape = input_shape(config, plan, n)
    trial = copy.deepcopy(backbone).cpu().train()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            trial(torch.zeros(shape))
    except (RuntimeError, ValueError) as error:
        choices = "--model, --size, --clip-frames" if len(shape) == 5 else "--model, --size"
        if isinstance(plan, PretextPlan):  # which chooses model and frames
            choices = "--size"
        raise RunError(
            f"--model {config.model} cannot train on {n} image(s) of {plan.side_px} px at a time "
            f"({str(error).splitlines()[0]}); choose another {choices} or --batch-size"
        ) from error
