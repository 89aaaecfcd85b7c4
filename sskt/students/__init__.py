"""Student networks by name, without heads: each returns every block's output and the pooled last feature."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from sskt.errors import RunError
from sskt.normalise import RELEASED_MEAN
from sskt.students.alexnet import AlexNet
from sskt.students.backbone import Backbone, Features
from sskt.students.cifar_resnet import CifarResNet
from sskt.students.resnet import ResNet
from sskt.students.resnet3d import ResNet3D
from sskt.students.torchvision_images import VGG16, DenseNet121, MobileNetV2
from sskt.students.torchvision_video import TORCH_VIDEO, TorchVideo
from sskt.students.wrapped import WrappedBackbone

__all__ = [
    "BACKBONES",
    "CLIP_BACKBONES",
    "DROPOUTS",
    "Backbone",
    "Features",
    "WrappedBackbone",
    "build_backbone",
]

CLIP_BACKBONES: dict[str, Callable[[], Backbone]] = {
    **{f"resnet3d{depth}": partial(ResNet3D, depth, "A") for depth in (10, 18, 34, 50)},
    **{f"resnet3d{depth}-b": partial(ResNet3D, depth, "B") for depth in (10, 18, 34, 50)},
    **{name: partial(TorchVideo, name) for name in TORCH_VIDEO},
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
