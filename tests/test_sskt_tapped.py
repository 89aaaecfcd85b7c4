"""Any module can be a student's backbone."""

from copy import deepcopy

import pytest
import torch
import torchvision
from torch import nn

from sskt.errors import RunError
from sskt.students import WrappedBackbone, build_backbone
from sskt.students.student import Student


def test_a_tapped_network_gives_what_the_built_in_one_gives():
    ours = build_backbone("resnet18").eval()
    theirs = torchvision.models.resnet18(weights=None)
    theirs.fc = nn.Identity()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    tapped = WrappedBackbone(theirs, side_px=64, blocks=("layer1", "layer2", "layer3", "layer4")).eval()
    assert tapped.block_channels == ours.block_channels == (64, 128, 256, 512)
    assert tapped.n_features == ours.n_features
    x = torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = tapped(x), ours(x)
    torch.testing.assert_close(a.pooled, b.pooled)
    for mine, known in zip(a.blocks, b.blocks, strict=True):
        assert torch.equal(mine, known)


def test_maps_are_pooled_and_a_probe_leaves_no_trace():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).train()
    before = module[1].running_mean.clone()
    tapped = WrappedBackbone(module, side_px=16)
    assert module.training
    assert torch.equal(module[1].running_mean, before)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(tapped.eval()(x).pooled, module(x).mean(dim=(2, 3)))


def test_it_learns_with_transfer_modules_and_is_copied_into_a_fresh_one():
    def network() -> Student:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2))
        return Student(
            WrappedBackbone(module, side_px=16, blocks=("0", "2"), transfer_width=10),
            4,
            {"a": 6},
            transfer_module=True,
        )

    student = network()
    primary, auxiliary = student(torch.randn(5, 3, 16, 16))
    assert (primary.shape, auxiliary["a"].shape) == ((5, 4), (5, 6))
    (primary.sum() + auxiliary["a"].sum()).backward()
    assert all(p.grad is not None for p in student.parameters())
    network().load_state_dict(student.state_dict(), strict=True)


def test_a_copy_taps_its_own_layers():
    """As the average of a student's weights is one."""
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3))
    tapped = WrappedBackbone(module, side_px=16, blocks=("0", "2"))
    copied = deepcopy(tapped)
    nn.init.zeros_(copied.module[0].weight)
    nn.init.zeros_(copied.module[0].bias)
    x = torch.randn(2, 3, 16, 16)
    assert not copied(x).blocks[0].any()
    assert tapped(x).blocks[0].any()


@pytest.mark.parametrize(
    ("module", "blocks", "expected"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 3)), ("stem",), "has no submodule 'stem', expected one of 0, ..."),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(2)), (), "the module itself gives .2, 8, 196. for 2"),
        (nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), ("1",), "1 gives .2, 5. for 2 pictures, expected 4"),
    ],
)
def test_what_does_not_fit_is_named(module, blocks, expected):
    with pytest.raises(RunError, match=expected):
        WrappedBackbone(module, side_px=16, blocks=blocks)


def test_a_module_for_clips_is_tapped_too():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv3d(3, 5, 3, padding=1), torch.nn.Conv3d(5, 7, 3, padding=1))
    backbone = WrappedBackbone(module, side_px=16, n_frames=4, blocks=("0", "1"), transfer_width=8)
    assert backbone.reads_clips
    assert (backbone.block_channels, backbone.n_features) == ((5, 7), 7)
    primary, auxiliary = Student(backbone, 2, {"a": 9}, True)(torch.randn(3, 3, 4, 16, 16))
    assert primary.shape == (3, 2)
    assert auxiliary["a"].shape == (3, 9)
    with pytest.raises(RunError, match=r"expected 5 axes, \(N, C, D, H, W\)"):
        WrappedBackbone(
            torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 64, 5)),
            side_px=8,
            n_frames=4,
            blocks=("0",),
        )
