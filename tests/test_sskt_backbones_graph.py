"""The networks of graph distillation: what they read of a clip, what they return, whose weights fit them."""

import json

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch.nn import functional as F

from sskt.errors import SourceError
from sskt.sources.registry import open_source, parse_source
from sskt.students import BACKBONES, build_backbone
from sskt.students.backbone import input_layout, to_channels_last
from sskt.students.pretrained import load_pretrained
from sskt.students.student import build_student

GRAPH = [name for name in BACKBONES if name.startswith(("vgg19", "prednet"))]


@pytest.fixture(scope="module")
def alexnet():
    return build_backbone("alexnet")


@pytest.mark.parametrize(
    ("side", "sides"), [(64, (15, 7, 3, 3, 3)), (112, (27, 13, 6, 6, 6)), (224, (55, 27, 13, 13, 13))]
)
def test_alexnet_yields_the_fourth_convolutions_256_channels(alexnet, side, sides):
    backbone = alexnet.eval()
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
    state = build_backbone("alexnet-small").state_dict()
    torch.save({k: v for k, v in state.items() if k.startswith("features.")}, tmp_path / "half.pth")
    with pytest.raises(SourceError, match=r"4 missing keys \(classifier.1.weight"):
        load_pretrained(build_backbone("alexnet-small"), tmp_path / "half.pth", "alexnet-small")


def test_a_student_of_ours_starts_another(tmp_path):
    torch.manual_seed(0)
    first, second = (build_student("alexnet-small", n, {}, transfer_module=False) for n in (3, 7))
    torch.save(first.exported_state(), tmp_path / "student.pth")
    load_pretrained(second.backbone, tmp_path / "student.pth", "alexnet-small")
    for name, value in first.backbone.state_dict().items():
        assert torch.equal(second.backbone.state_dict()[name], value), name
    sizes = [tuple(v.shape) for k, v in second.backbone.state_dict().items() if k.endswith("weight")]
    assert [shape[2:] for shape in sizes[:5]] == [(11, 11), (5, 5), (3, 3), (3, 3), (3, 3)]  # torchvision's
    assert sizes[-1] == (256, 256)


@pytest.mark.parametrize("side", [64, 224])
@pytest.mark.parametrize("name", GRAPH)
def test_a_teachers_fourth_block_lies_at_an_eighth_of_the_frame(name, side):
    with torch.inference_mode(), torch.device("meta"):
        backbone = build_backbone(name).eval()
        features = backbone(torch.zeros(2, 3, 16, side, side))
    blocks = [tuple(block.shape) for block in features.blocks]
    n_frames = {"vgg19-sorting": 4, "vgg19-egomotion": 2}.get(name.removesuffix("-small"), 1)
    sides = [side >> i for i in range(len(blocks))]
    channels = backbone.block_channels
    assert blocks == [(2, c, n_frames, s, s) for c, s in zip(channels, sides, strict=True)]
    assert blocks[backbone.conv4][1] == (32 if name.endswith("small") else 256)
    assert features.pooled.shape == (2, backbone.n_features) == (2, channels[-1])


def test_vgg19_and_prednet_have_the_parameters_of_their_definitions():
    with torch.device("meta"):
        found = {name: sum(p.numel() for p in build_backbone(name).parameters()) for name in GRAPH}
    expected, channels = 0, 3
    for width, n in zip((96, 128, 256, 256, 512), (2, 2, 4, 4, 4), strict=True):
        for _ in range(n):
            kernel = 11 if channels == 3 else 3
            expected += width * channels * kernel**2 + 3 * width  # a bias, and a batch norm
            channels = width
    assert {found[f"vgg19-{task}"] for task in ("sorting", "egomotion", "tracking")} == {expected}
    a, up, expected = (3, 48, 96, 256), (48, 96, 256, 0), 0
    for c, above in zip(a, up, strict=True):
        gates = 4 * (9 * (3 * c + above) * c + c)
        expected += gates + 9 * c * c + c + (9 * 2 * c * above + above if above else 0)
    assert found["prednet"] == expected


@pytest.mark.parametrize(
    ("task", "picks"),
    [("sorting", (2, 6, 10, 14)), ("egomotion", (7, 8)), ("tracking", (8,))],
)
def test_vgg19_is_the_written_network_on_its_frames(task, picks):
    torch.manual_seed(0)
    backbone = build_backbone(f"vgg19-{task}-small").eval()
    for name, buffer in backbone.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    clip, state = torch.randn(2, 3, 16, 32, 32), backbone.state_dict()
    with torch.inference_mode():
        features = backbone(clip)
        pooled = []
        for f, pick in enumerate(picks):
            x = clip[:, :, pick]
            for block, n in enumerate((2, 2, 4, 4, 4)):
                x = F.max_pool2d(x, 2) if block else x
                for i in range(n):
                    at = {k: state[f"block{block + 1}.{3 * i}.{k}"] for k in ("weight", "bias")}
                    norm = [state[f"block{block + 1}.{3 * i + 1}.{k}"] for k in
                            ("running_mean", "running_var", "weight", "bias")]  # fmt: skip
                    x = F.conv2d(x, **at, padding=at["weight"].shape[-1] // 2)
                    mean, variance, scale, shift = (v.view(-1, 1, 1) for v in norm)
                    x = F.relu((x - mean) / (variance + 1e-5).sqrt() * scale + shift)
                torch.testing.assert_close(features.blocks[block][:, :, f], x, rtol=1e-4, atol=1e-4)
            pooled.append(x.mean(dim=(2, 3)))
    torch.testing.assert_close(features.pooled, torch.stack(pooled).mean(dim=0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "n", "message"), [
    ("vgg19-sorting-small", 3, "it looks at 4 frames of a clip, and this one has 3"),
    ("vgg19-egomotion-small", 1, "it looks at 2 frames of a clip, and this one has 1"),
    ("prednet-small", 16, "PredNet reads sides that are multiples of 8, not 36 x 36 px"),
])  # fmt: skip
def test_clips_that_they_cannot_read_are_refused(name, n, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(name)(torch.zeros(1, 3, n, 36, 36))


@pytest.mark.parametrize("name", ["vgg19-sorting-small", "prednet-small", "alexnet-small"])
def test_channels_last_changes_no_number_beyond_rounding(name):
    """With a transfer module, whose kernels are 3D beside the backbone's 2D ones."""
    torch.manual_seed(0)
    student = build_student(name, 3, {"a": 4}, transfer_module=True).eval()
    clips = student.backbone.reads_clips
    x = torch.rand(2, 3, 16, 16, 16) if clips else torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        plain, before = student(x), {k: v.clone() for k, v in student.state_dict().items()}
        to_channels_last(student)
        layout = input_layout(student, reads_clips=clips)
        fast = student(x.contiguous(memory_format=layout))
    assert layout == (torch.contiguous_format if clips else torch.channels_last)
    kernels = [w for w in student.backbone.parameters() if w.ndim == 4 and w.shape[1] > 1]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in kernels)
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


def test_a_run_of_prednet_is_a_source_that_sees_pixels_from_0_to_1(tmp_path):
    classes = ["a", "b", "c"]
    student = build_student("prednet-small", 3, {}, transfer_module=False)
    save_file(student.exported_state(), tmp_path / "student.safetensors")
    config = {"model": "prednet-small", "classes": classes, "clip_mean": "kinetics"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = parse_source(f"run:{tmp_path}")
    assert (spec.mean, spec.std, spec.reads_clips) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), True)
    source = open_source(f"run:{tmp_path}", weights_dir=tmp_path)
    clip = torch.rand(1, 3, 16, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(source.module(clip), student.eval().predict(clip))
    with pytest.raises(SourceError, match="prednet"):  # there are no weights of it for Kinetics
        parse_source("kinetics:prednet")
