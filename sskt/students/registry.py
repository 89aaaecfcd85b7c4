"""Backbones by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from sskt.errors import RunError
from sskt.normalise import CLIP_MEANS, RELEASED_MEAN
from sskt.students.alexnet import AlexNet
from sskt.students.backbone import Backbone
from sskt.students.cifar_resnet import CifarResNet
from sskt.students.prednet import PredNet
from sskt.students.resnet import ResNet
from sskt.students.resnet3d import ResNet3D
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


def build_backbone(name: str, *, clip_mean: str = RELEASED_MEAN) -> Backbone:
    """Build a backbone with fresh weights from torch's global generator. `clip_mean`, one of
    `sskt.normalise.CLIP_MEANS`, is the mean that a 3D ResNet subtracts; other networks have their own.
    Raises RunError for an unknown name.
    """
    if name not in BACKBONES:
        raise RunError(f"model {name!r} is unknown, expected one of {', '.join(BACKBONES)}")
    backbone = BACKBONES[name]()
    if isinstance(backbone, ResNet3D):
        backbone.take_off(clip_mean)
    return backbone


def normalisation_of(
    name: str, *, clip_mean: str = RELEASED_MEAN
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of the pixels in 0..1 that a backbone expects; `clip_mean` is that of a 3D ResNet."""
    made = BACKBONES[name]
    kind = made.func if isinstance(made, partial) else made
    assert isinstance(kind, type)  # noqa: S101 - they are classes
    assert issubclass(kind, Backbone)  # noqa: S101
    return CLIP_MEANS[clip_mean] if kind is ResNet3D else kind.mean, kind.std
