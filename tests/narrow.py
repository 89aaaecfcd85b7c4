"""Named networks with an eighth of their channels, or for small images with a unit a stage, for tests of what
is around them: whole ones spend most of the time on gradients and files. tests/test_sskt_student.py and
tests/test_sskt_clips.py have the papers' sizes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.vgg import cfgs, make_layers

from sskt.students import cifar_resnet, resnet, resnet3d, torchvision_images

_UNITS = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}


class _Narrow(ResNet):
    def __init__(self, block: type[BasicBlock | Bottleneck], units: list[int]) -> None:
        super().__init__(block, units)
        self.fc = nn.Linear(self.inplanes, 1000)

    def _make_layer(self, block, planes, *args, **options):
        return super()._make_layer(block, planes // 8, *args, **options)


class _ConvolutionsAlone(nn.Module):
    """VGG16 without the 120 million weights that its students leave out."""

    def __init__(self) -> None:
        super().__init__()
        widths = [each if each == "M" else each // 8 for each in cfgs["D"]]
        self.features = make_layers(widths, batch_norm=True)


def _init_vgg16(network: torchvision_images.VGG16) -> None:
    torchvision_images._Staged.__init__(network, "vgg16_bn", {"6": 8, "13": 16, "23": 32, "33": 64, "43": 64})


def _get_model(name: str, **options: object) -> nn.Module:
    if options == {"weights": None} and name in _UNITS:
        return _Narrow(*_UNITS[name])
    if options == {"weights": None} and name == "vgg16_bn":
        return _ConvolutionsAlone()
    return torchvision.models.get_model(name, **options)


@contextmanager
def narrow_networks() -> Iterator[None]:
    """Students that are ResNets, while it lasts."""
    stage = cifar_resnet._stage
    theirs = SimpleNamespace(models=SimpleNamespace(get_model=_get_model))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet3d, "_WIDTHS", (64, 64, 64, 64))
        patch.setattr(cifar_resnet, "_stage", lambda a, b, _n_units, *, stride: stage(a, b, 1, stride=stride))
        patch.setattr(torchvision_images.VGG16, "__init__", _init_vgg16)
        patch.setattr(resnet, "torchvision", theirs)
        patch.setattr(torchvision_images, "torchvision", theirs)
        yield
