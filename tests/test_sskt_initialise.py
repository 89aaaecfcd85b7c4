"""What heads begin with, against the deviations of the released code (docs/method.md, section 5.2)."""

from __future__ import annotations

import pytest
import torch

from sskt.errors import RunError
from sskt.students import build_backbone
from sskt.students.initialise import choose_init
from sskt.students.student import Student

SOURCES = {"imagenet": 1000}


def student(model: str, init: str, sources=SOURCES, *, transfer_module: bool = True) -> Student:
    torch.manual_seed(0)
    return Student(build_backbone(model), 1000, sources, transfer_module, init=init)


def widest_transfer_convolution(of: Student) -> torch.Tensor:
    convolutions = [m for m in of.auxiliary.modules() if hasattr(m, "kernel_size")]
    return next(m.weight.detach() for m in convolutions if set(m.kernel_size) == {3})


@pytest.mark.parametrize(
    ("model", "released", "torchs"), [("resnet20", 0.1768, 0.0722), ("resnet18", 0.0255, 0.0255)]
)
def test_primary_head(model, released, torchs):
    """Kaiming normal is sqrt(2 / 64) for the CIFAR-style networks; torch's is sqrt(1 / (3 * 64))."""
    assert float(student(model, "released").head.weight.detach().std()) == pytest.approx(released, rel=0.02)
    assert float(student(model, "torch").head.weight.detach().std()) == pytest.approx(torchs, rel=0.02)


@pytest.mark.parametrize(
    ("model", "released", "torchs"),
    [("resnet18", 0.0211, 0.0086), ("resnet3d10", 0.00497, 0.00497), ("resnet20", 0.0340, 0.0340)],
)
def test_transfer_modules(model, released, torchs):
    """sqrt(2 / (9 * 500)) for the ImageNet-style networks, torch's sqrt(1 / (3 * fan in)) for the others."""
    now, before = (widest_transfer_convolution(student(model, init)) for init in ("released", "torch"))
    assert float(now.std()) == pytest.approx(released, rel=0.02)
    assert float(before.std()) == pytest.approx(torchs, rel=0.02)


@pytest.mark.parametrize("model", ["resnet20", "resnet18"])
def test_a_student_begins_alike_with_any_sources_or_none(model):
    alone = student(model, "released", {}).exported_state()
    for transfer_module in (False, True):
        taught = student(model, "released", transfer_module=transfer_module).exported_state()
        assert all(torch.equal(taught[key], value) for key, value in alone.items())


def test_the_released_one_is_the_default_of_the_papers_networks():
    assert [choose_init(name, None) for name in ("resnet20", "resnet50", "resnet3d18-b")] == ["released"] * 3
    others = ("mobilenet_v2", "r3d_18", "vgg16", "own:WrappedBackbone")
    assert [choose_init(name, None) for name in others] == ["torch"] * 4
    assert choose_init("resnet20", "torch") == "torch"
    with pytest.raises(RunError, match=r"--init released is of resnet20, .*; for vgg16 leave it out"):
        choose_init("vgg16", "released")
    with pytest.raises(RunError, match="init is 'zero', expected one of released, torch"):
        choose_init("resnet20", "zero")


def test_dropout_is_before_the_primary_head_alone_and_while_it_trains():
    torch.manual_seed(0)
    made = Student(build_backbone("resnet20"), 4, {"a": 9}, transfer_module=False, dropout=0.2)
    made.backbone.eval()
    x = torch.randn(8, 3, 8, 8)
    pooled = made.backbone(x).pooled
    plain = made.head(pooled)
    primary, auxiliary = made(x)
    assert torch.equal(auxiliary["a"], made.auxiliary[0](pooled))
    assert not torch.allclose(primary, plain)
    mean = made.predict(x.repeat(400, 1, 1, 1)).unflatten(0, (400, 8)).mean(dim=0)
    assert (mean - plain).abs().mean() < 0.1 * (primary - plain).abs().mean()
    made.eval()
    assert torch.equal(made(x)[0], plain)
    assert torch.equal(made.predict(x), plain)
