"""Initialise a student's heads: with torch's defaults, or as the released code does.

The released code initialises the primary head of CIFAR-style ResNets with Kaiming normal (standard deviation
0.177 for 64 features; torch's is 0.072), and likewise, by fan out, the transfer module's convolutions of
ImageNet-style ResNets (0.0211 for 3x3 of width 500; torch's is 0.0086). For 3D ResNets it uses torch's
defaults.
"""

from __future__ import annotations

from torch import nn

from sskt.errors import RunError, SettingError
from sskt.students.backbone import Backbone
from sskt.students.cifar_resnet import CifarResNet
from sskt.students.registry import BACKBONES
from sskt.students.resnet import ResNet

INITS = ("released", "torch")


def choose_init(model: str, init: str | None) -> str:
    """`init`, or if it is None the default for this model: the released code's initialisation for its own
    networks, the ResNets, else torch's.

    Raises RunError if `init` is unknown, or is the released one and the model is not a ResNet.
    """
    has_released = model in BACKBONES and model.startswith("resnet")
    if init is None:
        return "released" if has_released else "torch"
    if init not in INITS:
        raise SettingError("init", f"is {init!r}, expected one of {', '.join(INITS)}")
    if init == "released" and not has_released:
        resnets = [name for name in BACKBONES if name.startswith("resnet")]
        raise RunError(f"--init released is of {', '.join(resnets)}; for {model} leave it out")
    return init


def initialise_head(head: nn.Linear, backbone: Backbone) -> None:
    """Initialise a primary head's weights as the released code does; its bias keeps torch's default."""
    if isinstance(backbone, CifarResNet):
        nn.init.kaiming_normal_(head.weight, mode="fan_in", nonlinearity="relu")


def initialise_auxiliary(auxiliary: nn.Module, backbone: Backbone) -> None:
    """Initialise the convolutions of auxiliary heads, if they are transfer modules, as the released code
    does.
    """
    if isinstance(backbone, ResNet):
        for module in auxiliary.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
