"""Backbones by name: ours, timm's as timm:NAME, and those that a function makes, package.module:function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch

from sskt.errors import RunError
from sskt.normalise import CLIP_MEANS, RELEASED_MEAN
from sskt.students.alexnet import AlexNet
from sskt.students.backbone import Backbone
from sskt.students.cifar_resnet import CifarResNet
from sskt.students.prednet import PredNet
from sskt.students.referenced import build_referenced, is_reference
from sskt.students.resnet import ResNet
from sskt.students.resnet3d import ResNet3D
from sskt.students.timm_backbone import TimmBackbone
from sskt.students.timm_names import TIMM, timm_normalisation
from sskt.students.torchvision_images import VGG16, DenseNet121, MobileNetV2
from sskt.students.torchvision_video import TORCH_VIDEO, TorchVideo
from sskt.students.vgg19 import VGG19, VGG19_FRAMES

KINETICS_BACKBONES: dict[str, Callable[[], Backbone]] = {  # of which there are weights for Kinetics
    **{f"resnet3d{depth}": partial(ResNet3D, depth, "A") for depth in (10, 18, 34, 50)},
    **{f"resnet3d{depth}-b": partial(ResNet3D, depth, "B") for depth in (10, 18, 34, 50)},
    **{name: partial(TorchVideo, name) for name in TORCH_VIDEO},
}
CLIP_BACKBONES: dict[str, Callable[[], Backbone]] = {
    **KINETICS_BACKBONES,
    **{f"vgg19-{task}": partial(VGG19, task) for task in VGG19_FRAMES},
    "prednet": PredNet,
    **{f"vgg19-{task}-small": partial(VGG19, task, small=True) for task in VGG19_FRAMES},
    "prednet-small": partial(PredNet, small=True),
}
BACKBONES: dict[str, Callable[[], Backbone]] = {
    **{f"resnet{depth}": partial(CifarResNet, depth) for depth in (20, 32, 44, 56, 110)},
    **{f"resnet{depth}": partial(ResNet, depth) for depth in (18, 34, 50)},
    "mobilenet_v2": MobileNetV2,
    "densenet121": DenseNet121,
    "vgg16": VGG16,
    "alexnet": AlexNet,
    "alexnet-small": partial(AlexNet, small=True),
    **CLIP_BACKBONES,
}
DROPOUTS = {"mobilenet_v2": 0.2}  # torchvision's rate on the pooled features, before the primary head


def is_built_by_name(model: str) -> bool:
    """Whether the name says how to make the network, so that a run can make it again; a name of the right
    form may still be unknown to timm, or its function missing.
    """
    return model in BACKBONES or model.startswith(TIMM) or is_reference(model)


def require_built_by_name(model: str) -> None:
    """Raise RunError for a name of no network."""
    if not is_built_by_name(model):
        raise RunError(
            f"model {model!r} is unknown, expected one of {', '.join(BACKBONES)}, {TIMM}NAME, or "
            f"package.module:function"
        )


def build_backbone(
    name: str, *, clip_mean: str = RELEASED_MEAN, sizes: Sequence[tuple[int, ...]] = ((224, 224),)
) -> Backbone:
    """Build a backbone with fresh weights from torch's global generator. `clip_mean`, one of
    `sskt.normalise.CLIP_MEANS`, is the mean that one of our 3D ResNets subtracts; other networks have their
    own. `sizes`, which ours do not need, are those of its inputs after (N, 3): (H, W), or (D, H, W) of clips;
    a function's network may be for any of them, tried in order. Raises RunError for an unknown name.
    """
    require_built_by_name(name)
    if name.startswith(TIMM):
        return TimmBackbone(name.removeprefix(TIMM), sizes[-1][-1])
    if is_reference(name):
        return build_referenced(name, sizes)
    backbone = BACKBONES[name]()
    if isinstance(backbone, ResNet3D):
        backbone.take_off(clip_mean)
    return backbone


def reads_clips(name: str, *, sizes: Sequence[tuple[int, ...]] = ((224, 224),)) -> bool:
    """Whether a backbone reads (N, 3, D, H, W); for `sizes` see `build_backbone`. A function's is built to
    find out.
    """
    return name in CLIP_BACKBONES or (is_reference(name) and _facts(name, tuple(sizes))[0])


def normalisation_of(
    name: str, *, clip_mean: str = RELEASED_MEAN, sizes: Sequence[tuple[int, ...]] = ((224, 224),)
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of the pixels in 0..1 that a backbone expects; for the other arguments see
    `build_backbone`.
    """
    if name.startswith(TIMM):
        return timm_normalisation(name.removeprefix(TIMM))
    if is_reference(name):
        return _facts(name, tuple(sizes))[1:]
    made = BACKBONES[name]
    kind = made.func if isinstance(made, partial) else made
    assert isinstance(kind, type)  # noqa: S101 - they are classes
    assert issubclass(kind, Backbone)  # noqa: S101
    return CLIP_MEANS[clip_mean] if kind is ResNet3D else kind.mean, kind.std


@lru_cache(maxsize=64)
def _facts(
    name: str, sizes: tuple[tuple[int, ...], ...]
) -> tuple[bool, tuple[float, ...], tuple[float, ...]]:
    """Whether a function's backbone reads clips, and its mean and std."""
    with torch.random.fork_rng(devices=[]):
        backbone = build_referenced(name, sizes)
    return backbone.reads_clips, backbone.mean, backbone.std
