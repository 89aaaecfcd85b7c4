"""The networks of graph distillation: what they read of a clip, what they return, whose weights fit them."""

import pytest
import torch
import torchvision

from sskt.errors import SourceError
from sskt.students import build_backbone
from sskt.students.pretrained import load_pretrained
from sskt.students.student import build_student


@pytest.mark.parametrize(("side", "sides"), [(64, (15, 7, 3, 3, 3)), (112, (27, 13, 6, 6, 6))])
def test_alexnet_yields_the_fourth_convolutions_256_channels(side, sides):
    backbone = build_backbone("alexnet").eval()
    with torch.inference_mode():
        features = backbone(torch.rand(2, 3, side, side))
    shapes = [(2, c, s, s) for c, s in zip(backbone.block_channels, sides, strict=True)]
    assert [tuple(block.shape) for block in features.blocks] == shapes
    assert backbone.block_channels[backbone.conv4] == 256
    assert features.pooled.shape == (2, 4096)
    assert all(float(block.min()) == 0 for block in features.blocks)  # after ReLU, and not overwritten later


def test_alexnet_is_torchvisions_and_leaves_only_the_last_layer_of_its_file(tmp_path):
    torch.manual_seed(0)
    theirs = torchvision.models.alexnet(num_classes=5).eval()
    torch.save(theirs.state_dict(), tmp_path / "alexnet.pth")
    ours = build_student("alexnet", 5, {}, transfer_module=False).eval()
    load_pretrained(ours.backbone, tmp_path / "alexnet.pth", "alexnet")
    ours.head.load_state_dict(theirs.classifier[6].state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(ours.predict(x), theirs(x))
    ours.freeze_until("classifier")
    moving = {name for name, weight in ours.named_parameters() if weight.requires_grad}
    assert {name.rpartition(".")[0] for name in moving} == {
        "backbone.classifier.1",
        "backbone.classifier.4",
        "head",
    }


def test_a_file_without_alexnets_hidden_layers_is_refused(tmp_path):
    state = torchvision.models.alexnet(num_classes=5).state_dict()
    torch.save({k: v for k, v in state.items() if k.startswith("features.")}, tmp_path / "half.pth")
    with pytest.raises(SourceError, match=r"4 missing keys \(classifier.1.weight"):
        load_pretrained(build_backbone("alexnet"), tmp_path / "half.pth", "alexnet")


def test_a_student_of_ours_starts_another(tmp_path):
    torch.manual_seed(0)
    first, second = (build_student("alexnet-small", n, {}, transfer_module=False) for n in (3, 7))
    torch.save(first.exported_state(), tmp_path / "student.pth")
    load_pretrained(second.backbone, tmp_path / "student.pth", "alexnet-small")
    for name, value in first.backbone.state_dict().items():
        assert torch.equal(second.backbone.state_dict()[name], value), name
    sizes = [tuple(v.shape) for k, v in second.backbone.state_dict().items() if k.endswith("weight")]
    theirs = [tuple(v.shape) for k, v in torchvision.models.alexnet().state_dict().items() if "weight" in k]
    assert [shape[2:] for shape in sizes] == [shape[2:] for shape in theirs[:-1]]  # the kernels alone agree
    assert sizes[-1] == (256, 256)
