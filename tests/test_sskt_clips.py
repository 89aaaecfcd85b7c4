"""3D networks, their transfer module, Kinetics weights and f_s for clips, against plain re-computations."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file

from sskt.errors import RunError, SourceError
from sskt.normalise import KINETICS_MEAN, WHOLE_LEVELS, normalise
from sskt.sources.clip_frames import CLIP, ClipFrames
from sskt.sources.forward import Forward
from sskt.sources.frozen import FrozenSource
from sskt.sources.input_map import InputMap
from sskt.sources.registry import named_sources, open_source, parse_source
from sskt.sources.source import Source
from sskt.students import KINETICS_BACKBONES, build_backbone
from sskt.students.pretrained import load_pretrained
from sskt.students.student import build_student
from sskt.students.transfer import TransferModule

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", KINETICS_BACKBONES)
def test_backbone_for_clips_yields_what_it_declares(name):
    backbone = build_backbone(name).eval()
    with torch.inference_mode():
        features = backbone(torch.zeros(1, 3, 8, 32, 32))
    assert tuple(block.shape[1] for block in features.blocks) == backbone.block_channels
    torch.testing.assert_close(features.pooled, F.adaptive_avg_pool3d(features.blocks[-1], 1).flatten(1))
    assert features.blocks[0].shape[3] == (8 if name.startswith("resnet3d") else 16)
    assert features.blocks[-1].shape[2:] == (
        (1, 1, 1) if name.startswith("resnet3d") else features.blocks[-1].shape[2:]
    )
    assert backbone.reads_clips


def test_resnet3d18_has_the_parameters_of_its_definition():
    def convolution(i, o, k):
        return i * o * k**3 + 2 * o  # and a batch norm

    expected, channels = convolution(3, 64, 7), 64
    for width in (64, 128, 256, 512):
        expected += convolution(channels, width, 3) + 3 * convolution(width, width, 3)
        channels = width
    found = sum(p.numel() for p in build_backbone("resnet3d18").parameters())
    assert found == expected == 33_030_080, "33.2 million with the head for Kinetics"
    shortcuts = sum(convolution(i, o, 1) for i, o in ((64, 128), (128, 256), (256, 512)))
    assert sum(p.numel() for p in build_backbone("resnet3d18-b").parameters()) == expected + shortcuts


@pytest.mark.parametrize("name", ["resnet3d10", "resnet3d50", "resnet3d18-b"])
def test_resnet3d_is_the_written_network(name):
    torch.manual_seed(0)
    backbone = build_backbone(name).eval()
    state = backbone.state_dict()
    x = torch.randn(2, 3, 5, 40, 36)
    with torch.inference_mode():
        expected = _by_hand(x, state, bottleneck="50" in name)
        torch.testing.assert_close(backbone(x).pooled, expected, rtol=1e-4, atol=1e-4)


def _by_hand(x, state, bottleneck):
    """The network from its weights' names and shapes alone."""

    def conv_bn(x, at, bn, stride=1):
        weight = state[f"{at}.weight"]
        x = F.conv3d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        scale = state[f"{bn}.weight"] / torch.sqrt(state[f"{bn}.running_var"] + 1e-5)
        shift = state[f"{bn}.bias"] - state[f"{bn}.running_mean"] * scale
        return x * scale.view(-1, 1, 1, 1) + shift.view(-1, 1, 1, 1)

    x = F.max_pool3d(conv_bn(x, "conv1", "bn1", (1, 2, 2)).relu(), 3, 2, 1)
    for stage in (1, 2, 3, 4):
        unit = 0
        while f"layer{stage}.{unit}.conv1.weight" in state:
            at = f"layer{stage}.{unit}"
            stride = 2 if stage > 1 and unit == 0 else 1
            if bottleneck:
                y = conv_bn(x, f"{at}.conv1", f"{at}.bn1").relu()
                y = conv_bn(y, f"{at}.conv2", f"{at}.bn2", stride).relu()
                y = conv_bn(y, f"{at}.conv3", f"{at}.bn3")
            else:
                y = conv_bn(x, f"{at}.conv1", f"{at}.bn1", stride).relu()
                y = conv_bn(y, f"{at}.conv2", f"{at}.bn2")
            if f"{at}.downsample.0.weight" in state:
                x = conv_bn(x, f"{at}.downsample.0", f"{at}.downsample.1", stride)
            else:
                x = F.avg_pool3d(x, kernel_size=1, stride=stride)
                x = torch.cat([x, x.new_zeros(len(x), y.shape[1] - x.shape[1], *x.shape[2:])], dim=1)
            x = (x + y).relu()
            unit += 1
    return x.mean(dim=(2, 3, 4))


def test_transfer_module_for_clips_is_the_written_recipe():
    torch.manual_seed(0)
    module = TransferModule((4, 6), 8, 5, reads_clips=True).double().eval()
    blocks = [torch.randn(2, 4, 4, 7, 7).double(), torch.randn(2, 6, 2, 4, 4).double()]
    pooled = []
    for bottleneck, x in zip(module.bottlenecks, blocks, strict=True):
        for i, (kernel, stride) in enumerate(((1, 1), (3, 2), (1, 1))):
            weight = bottleneck[3 * i].weight
            assert weight.shape[0] == (8 if i == 2 else 4)
            x = F.conv3d(x, weight, stride=stride, padding=kernel // 2) / np.sqrt(1 + 1e-5)
            x = x.relu()
        pooled.append(x.mean(dim=(2, 3, 4)))
    expected = module.linear((pooled[0] + pooled[1]) / 2)
    torch.testing.assert_close(module(blocks), expected)


def test_kinetics_checkpoints_of_3d_resnets_pytorch_are_read(tmp_path):
    torch.manual_seed(0)
    theirs = build_backbone("resnet3d10")
    head = torch.nn.Linear(512, 400)
    state = {f"module.{k}": v for k, v in theirs.state_dict().items()}
    state |= {f"module.fc.{k}": v for k, v in head.state_dict().items()}
    path = tmp_path / "resnet-10-kinetics.pth"
    torch.save({"epoch": 7, "arch": "resnet-10", "state_dict": state, "optimizer": {}}, path)
    source = open_source("kinetics:resnet3d10", weights=path, weights_dir=tmp_path)
    x = torch.randn(2, 3, 4, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(source.module(x), head(theirs.eval()(x).pooled))
    backbone = build_backbone("resnet3d10")
    load_pretrained(backbone, path, "resnet3d10")
    for key, value in theirs.state_dict().items():
        assert torch.equal(backbone.state_dict()[key], value), key
    with pytest.raises(SourceError, match="missing keys"):
        load_pretrained(build_backbone("resnet3d18"), path, "resnet3d18")


def test_torchvisions_networks_for_clips_give_torchvisions_logits(tmp_path):
    torch.manual_seed(0)
    theirs = torchvision.models.get_model("r3d_18", weights=None, num_classes=400).eval()
    save_file(theirs.state_dict(), tmp_path / "r3d.safetensors")
    source = open_source("kinetics:r3d_18", weights=tmp_path / "r3d.safetensors", weights_dir=tmp_path)
    x = torch.randn(1, 3, 4, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(source.module(x), theirs(x))
    published = torchvision.models.get_model_weights("r3d_18")["KINETICS400_V1"]
    assert source.spec.url == published.url
    assert (source.spec.mean, source.spec.std) == (
        tuple(published.transforms().mean),
        tuple(published.transforms().std),
    )
    assert parse_source("kinetics").name == "kinetics"
    assert parse_source("kinetics").architecture == "resnet3d18"
    assert "kinetics:r3d_18" in [spec.name for spec in named_sources()]
    with pytest.raises(SourceError, match="did you mean"):
        parse_source("kinetics:r3d_81")


def test_our_own_student_is_a_beginning_too(tmp_path):
    torch.manual_seed(0)
    student = build_student("resnet20", 10, {"a": 5}, transfer_module=False)
    save_file(student.exported_state(), tmp_path / "student.safetensors")
    backbone = build_backbone("resnet20")
    load_pretrained(backbone, tmp_path / "student.safetensors", "resnet20")
    assert torch.equal(backbone.layer3[2].conv2.weight, student.backbone.layer3[2].conv2.weight)


def test_frozen_blocks_keep_their_weights_and_statistics():
    torch.manual_seed(0)
    student = build_student("resnet3d10", 3, {"a": 5}, transfer_module=True)
    student.freeze_until("layer4")
    student.train()
    before = {k: v.clone() for k, v in student.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=0.1)
    primary, auxiliary = student(torch.randn(2, 3, 4, 32, 32))
    (primary.sum() + auxiliary["a"].sum()).backward()
    optimiser.step()
    for key, value in student.state_dict().items():
        frozen = key.startswith("backbone.") and ".layer4." not in key
        assert torch.equal(value, before[key]) == frozen or "num_batches" in key, key
    with pytest.raises(RunError, match="'layer9', expected one of conv1, bn1, layer1"):
        student.freeze_until("layer9")


def clips(n, n_frames=6, side=8):
    return torch.randint(
        0, 256, (n, 3, n_frames, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize(
    ("name", "picks"),
    [
        ("center_frame", (3,)),
        ("mean_frame", tuple(range(6))),
        ("frames:1", (3,)),
        ("frames:3", (1, 3, 5)),
        ("frames:6", tuple(range(6))),
        ("reference", (3,)),
    ],
)
def test_only_the_frames_that_are_looked_at_are_picked(name, picks):
    assert ClipFrames.parse(name, 6).picks == picks
    pixels = clips(2)
    picked = InputMap(8, frames=ClipFrames.parse(name, 6)).pick(pixels)
    assert torch.equal(picked, pixels[:, :, list(picks)])


@pytest.mark.parametrize(
    "name", ["frames:0", "frames:7", "frames", "frames:2:mean", "centre_frame", "frames:-1", ""]
)
def test_other_functions_are_refused(name):
    with pytest.raises(SourceError):
        ClipFrames.parse(name, 6)


class Colours(torch.nn.Module):
    """Logits that tell one picture, or one clip, from another."""

    def forward(self, x):
        return torch.stack(
            [
                x.amax(dim=(1, *range(2, x.ndim))),
                x[:, 0].flatten(1).mean(dim=1),
                x[:, 1].flatten(1).std(dim=1),
            ],
            dim=1,
        )


def colours(reads_clips=False):
    spec = parse_source("kinetics" if reads_clips else "imagenet")
    return Source(_with(spec, n_classes=3), Colours(), "0" * 64, Path("made.pth"))


def _with(spec, **fields):
    from dataclasses import replace

    return replace(spec, **fields)


@pytest.mark.parametrize(
    "name", ["center_frame", "mean_frame", "frames:3", "frames:3:log-probabilities", "reference"]
)
def test_a_sources_answer_is_that_of_its_frames_one_by_one(name):
    mean, std = (KINETICS_MEAN, WHOLE_LEVELS) if name == "reference" else ((0.5,) * 3, (0.2,) * 3)
    input_map = InputMap(12, mean, std, frames=ClipFrames.parse(name, 6))
    frozen = FrozenSource(colours(), input_map, device=CPU, forward=Forward("fp32", 4), image_px=8)
    pixels = clips(7)
    found = frozen.logits(input_map.pick(pixels)).float().numpy()
    for n in range(7):
        frames = [pixels[n, :, d] for d in input_map.frames.picks]
        if name == "mean_frame":
            levels = np.rint(np.mean([f.numpy().astype(np.float32) for f in frames], axis=0))
            frames = [torch.from_numpy(levels.astype(np.uint8))]
        answers = []
        for frame in frames:
            x = normalise(frame[None], mean, std)
            x = F.interpolate(x, size=(12, 12), mode="bilinear", align_corners=False)
            answers.append(Colours()(x)[0].numpy())
        if "log" in name:
            answers = [a - np.log(np.exp(a - a.max()).sum()) - a.max() for a in answers]
        np.testing.assert_allclose(found[n], np.mean(answers, axis=0), rtol=2e-3, atol=2e-3)
    assert (frozen.dummy_input(2) == 0).all()
    assert frozen.dummy_input(2).shape == (2, 3, len(input_map.frames.picks), 8, 8)


def test_a_source_for_clips_sees_all_of_a_clip():
    input_map = InputMap(12, (0.5,) * 3, (0.2,) * 3, frames=ClipFrames(CLIP, 6))
    frozen = FrozenSource(
        colours(reads_clips=True), input_map, device=CPU, forward=Forward("fp32", 4), image_px=8
    )
    pixels = clips(3)
    x = normalise(pixels, (0.5,) * 3, (0.2,) * 3)
    x = torch.stack(
        [F.interpolate(x[:, :, d], size=(12, 12), mode="bilinear", align_corners=False) for d in range(6)],
        dim=2,
    )
    np.testing.assert_allclose(frozen.logits(pixels).float(), Colours()(x), rtol=2e-3, atol=2e-3)


def test_what_is_recorded_of_pictures_has_not_changed():
    assert "frames" not in InputMap(74).to_dict(), "stores from before clips must still match"
    for input_map in (InputMap(74), InputMap(12, frames=ClipFrames.parse("frames:2", 16))):
        assert InputMap.from_dict(input_map.to_dict()) == input_map
