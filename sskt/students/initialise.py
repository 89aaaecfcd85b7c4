"""What the heads of a student begin with: torch's defaults, or what the released code gives them.

There the primary head of the CIFAR-style ResNets is Kaiming normal (standard deviation 0.177 for 64 features,
torch's 0.072), and so are the transfer module's convolutions of the ImageNet-style ResNets, by fan out
(0.0211 for 3x3 of width 500, torch's 0.0086). The 3D ResNets' begin with torch's defaults there too.
"""

from __future__ import annotations

from torch import nn

from sskt.errors import RunError
from sskt.students import BACKBONES, Backbone
from sskt.students.cifar_resnet import CifarResNet
from sskt.students.resnet import ResNet

INITS = ("released", "torch")


def choose_init(model: str, asked: str | None) -> str:
    """`asked`, or what a student of this name begins with if nothing is asked for: the released code's
    initialisation for its own networks, the ResNets.

    Raises RunError for an initialisation that is unknown, or the released one of another network.
    """
    has_released = model in BACKBONES and model.startswith("resnet")
    if asked is None:
        return "released" if has_released else "torch"
    if asked not in INITS:
        raise RunError(f"--init is {asked!r}, expected one of {', '.join(INITS)}")
    if asked == "released" and not has_released:
        able = [name for name in BACKBONES if name.startswith("resnet")]
        raise RunError(f"--init released is of {', '.join(able)}; for {model} leave it out")
    return asked


def initialise_head(head: nn.Linear, backbone: Backbone) -> None:
    """Give a primary head the released weights; its bias stays torch's."""
    if isinstance(backbone, CifarResNet):
        nn.init.kaiming_normal_(head.weight, mode="fan_in", nonlinearity="relu")


def initialise_auxiliary(auxiliary: nn.Module, backbone: Backbone) -> None:
    """Give the convolutions of a transfer module, if it is one, the released weights."""
    if isinstance(backbone, ResNet):
        for module in auxiliary.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
