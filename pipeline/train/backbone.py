"""The student's backbone: its name, what it reads, and the weights that it starts from."""

from __future__ import annotations

import copy
import logging

import torch
from torch import nn

from cache import Location
from pipeline.data import Augmentation, Plan, PretextPlan, parse_target
from pipeline.train.config import EARLIER_MEAN, OWN, OWN_MEAN, TrainConfig
from pipeline.train.kernel_check import input_shape
from sskt.errors import RunError, SettingError
from sskt.normalise import CLIP_MEANS, RELEASED_MEAN
from sskt.recipes import recipe_for
from sskt.sources import CENTER_FRAME
from sskt.students import (
    BACKBONES,
    CLIP_BACKBONES,
    Backbone,
    ResNet3D,
    Wrappable,
    build_backbone,
    is_built_by_name,
    is_reference,
    reads_clips,
    sizes_seen,
    source_sha256,
    wrap_module,
)

log = logging.getLogger(__name__)


def default_model(target: str, method: str) -> str:
    """The student of a run that names none: the recipe's first."""
    return recipe_for(target, method).models[0]


def model_name(model: str | Backbone) -> str:
    """A student as a config names it."""
    return model if isinstance(model, str) else f"{OWN}{type(model).__name__}"


def take_module(
    model: str | nn.Module | None, target: str, augmentation: Augmentation
) -> str | Backbone | None:
    """`model`, made a backbone for the target's images if it is a plain module; see `wrap_module`."""
    if not isinstance(model, nn.Module):
        return model
    return _as_backbone(model, _sizes_of(target, augmentation))


def _sizes_of(target: str, augmentation: Augmentation) -> tuple[tuple[int, ...], ...]:
    """The sizes of inputs that a student of unknown kind may read: clips, if there are any, or images."""
    plan = augmentation.training_plan(parse_target(target)).to_dict()
    return tuple(dict.fromkeys((*sizes_seen(plan, None), *sizes_seen(plan, CENTER_FRAME))))


def _as_backbone(module: nn.Module, sizes: tuple[tuple[int, ...], ...]) -> Backbone:
    """A backbone as it is, or one of a copy of a plain module."""
    if isinstance(module, Backbone):
        return module
    name = f"the module {type(module).__name__}"
    try:
        own = copy.deepcopy(module)
    except Exception as error:
        raise RunError(
            f"{name} cannot be copied ({type(error).__name__}: {error}); wrap it in "
            f"sskt.students.WrappedBackbone(module, side_px=...) yourself"
        ) from error
    return wrap_module(own, sizes, name)


def choose_frames(target: str, model: str | Backbone, augmentation: Augmentation) -> str | None:
    """What a student sees of a clip, for the config: the centre frame if it reads images and the target holds
    videos.
    """
    if not parse_target(target).holds_videos:
        return None
    if isinstance(model, Backbone):
        reads_images = not model.reads_clips
    else:
        reads_images = is_built_by_name(model) and not reads_clips(
            model, sizes=_sizes_of(target, augmentation)
        )
    return CENTER_FRAME if reads_images else None


def source_of(model: str) -> str | None:
    """The sha256 of the source of the function that makes a student; None for any other."""
    return source_sha256(model) if is_reference(model) else None


def choose_clip_mean(asked: str, model: str) -> str:
    """The mean that a student subtracts from clips, for the config. Raises RunError for an unknown mean, or
    one that the student would ignore.
    """
    if asked not in CLIP_MEANS:
        raise SettingError("clip_mean", f"is {asked!r}, expected one of {', '.join(CLIP_MEANS)}")
    if model in BACKBONES and model.startswith("resnet3d"):
        return asked
    if asked != RELEASED_MEAN:
        raise RunError(f"--clip-mean {asked} is for resnet3d networks, this student is {model}; leave it out")
    return OWN_MEAN if model.startswith(OWN) or is_reference(model) else EARLIER_MEAN


def open_backbone(model: str | Backbone, config: TrainConfig) -> Backbone:
    """Build a named backbone from the run's seed, or take the caller's as it is; the heads' weights follow
    the seed in either case.
    """
    torch.manual_seed(config.seed)
    if isinstance(model, str):
        return build_backbone(model, clip_mean=config.clip_mean, sizes=_sizes(config))
    if isinstance(model, ResNet3D) and config.clip_mean != OWN_MEAN:
        model.take_off(config.clip_mean)  # in a run from before backbones had another mean
    return model


def _sizes(config: TrainConfig) -> tuple[tuple[int, ...], ...]:
    return sizes_seen(config.plan, config.student_frames)


def reopen_backbone(
    config: TrainConfig, backbone: Wrappable | None, run: Location, *, resumes: bool = False
) -> Backbone:
    """The backbone of an earlier run, with the weights that its seed gives. Raises RunError if it was the
    caller's own, and `backbone` is None, or if it `resumes` and the source of the function that makes it has
    changed, which otherwise is only said.
    """
    if config.is_own and backbone is None:
        raise RunError(
            f"{run}: its student is {config.model}; continue from Python, with that backbone (one that is "
            f"named as --model package.module:function is made again by itself)"
        )
    now = source_of(config.model) if config.model_sha256 else None
    if now != config.model_sha256:
        changed = (
            f"{run}: the source of {config.model} has changed since the run was started (sha256 was "
            f"{str(config.model_sha256)[:12]}, is {str(now)[:12]})"
        )
        if resumes:
            raise RunError(
                f"{changed}, and it would not come to the same numbers; restore the source, or start again "
                f"in another folder"
            )
        log.warning(f"{changed}; if the network computes something else by now, so does this student")
    own = None if backbone is None else _as_backbone(backbone, _sizes(config))
    return open_backbone(own or config.model, config)


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
    try:
        trial = copy.deepcopy(backbone).cpu().train()
    except Exception:
        if not is_reference(config.model):
            raise
        return  # it has been tried in eval mode
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
