"""Students that are not ours: timm's, a function's, and any module; how they are wrapped, and what starts
them.
"""

import json
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.runtime import Paths
from pipeline.train import published_weights as published
from sskt.errors import MissingExtraError, RunError, SourceError
from sskt.students import (
    Student,
    build_backbone,
    grad_cam,
    is_reference,
    load_pretrained,
    normalisation_of,
    source_sha256,
    timm_weights,
    wrap_module,
)
from sskt.students.timm_backbone import TimmBackbone

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A classifier as people write them, with a stem, two stages and a head."""

    def __init__(self, n: int = 10):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.stage = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, n)

    def forward(self, x):
        return self.fc(self.stage(self.stem(x)).mean(dim=(2, 3)))


class Tokens(nn.Module):
    def forward(self, x):
        return x.flatten(2)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_a_timm_student_gives_timms_features_and_maps(name):
    backbone = build_backbone(f"timm:{name}", sizes=((64, 64),)).eval()
    net = timm.create_model(name, num_classes=0).eval()
    if hasattr(net, "set_input_size"):
        net.set_input_size(img_size=64)
    net.load_state_dict(backbone.module.state_dict())
    with torch.no_grad():
        features, pooled = backbone(IMAGES), net(IMAGES)
        maps = net.forward_intermediates(IMAGES, norm=False, intermediates_only=True)
    assert torch.equal(features.pooled, pooled)
    assert features.pooled.shape[1] == backbone.n_features
    assert features.blocks
    for block, channels in zip(features.blocks, backbone.block_channels, strict=True):
        assert block.shape[1] == channels
        near = [float((block - known).abs().max()) for known in maps if known.shape == block.shape]
        assert min(near) < 1e-5, near
    config = timm.get_pretrained_cfg(name)
    assert (backbone.mean, backbone.std) == (config.mean, config.std) == normalisation_of(f"timm:{name}")
    heads = {"fc.weight", "head.fc.weight", "head.weight", "classifier.weight"}
    assert heads.isdisjoint(net.state_dict())


def test_position_embeddings_are_resampled_as_timm_does(tmp_path):
    torch.manual_seed(0)
    teacher = timm.create_model("test_vit", num_classes=7)
    save_file(teacher.state_dict(), tmp_path / "vit.safetensors")
    backbone = build_backbone("timm:test_vit", sizes=((64, 64),)).eval()
    load_pretrained(backbone, tmp_path / "vit.safetensors", "timm:test_vit")
    teacher.reset_classifier(0)
    teacher.set_input_size(img_size=64)
    with torch.no_grad():
        assert torch.equal(backbone(IMAGES).pooled, teacher.eval()(IMAGES))
    student = Student(backbone, 3, {}, transfer_module=False)
    save_file(student.state_dict(), tmp_path / "student.safetensors")  # of this size, from a run of ours
    again = build_backbone("timm:test_vit", sizes=((64, 64),)).eval()
    load_pretrained(again, tmp_path / "student.safetensors", "timm:test_vit")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), backbone.parameters(), strict=True))


def test_a_plain_module_loses_its_head_and_shows_its_blocks():
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    backbone = wrap_module(net, ((64, 64),), "the module Net").eval()
    assert "fc (8 to 10) is taken off, and heads read the 8 numbers before it" in backbone.note
    assert (backbone.n_features, backbone.block_channels) == (8, (4, 8))
    stem, stage = backbone(IMAGES).blocks
    assert torch.equal(stem, net.stem(IMAGES))
    assert torch.equal(stage, net.stage(stem))
    assert torch.equal(backbone(IMAGES).pooled, stage.mean(dim=(2, 3)))
    left = {name.removeprefix("module."): value for name, value in backbone.state_dict().items()}
    assert all(torch.equal(value, before.pop(name)) for name, value in left.items())
    assert set(before) == {"fc.weight", "fc.bias"}


def test_a_module_for_clips_is_tried_on_clips_first():
    sizes = ((4, 16, 16), (16, 16))
    net = nn.Sequential(nn.Conv3d(3, 5, 3, padding=1), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    assert wrap_module(net, sizes, "net").reads_clips
    assert not wrap_module(Net(), sizes, "net").reads_clips


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet20", "layer3"),
        ("alexnet-small", "features.11"),
        ("timm:test_resnet", "module.layer4"),
        ("timm:test_vit", "module.blocks.4"),  # of six: the last one's patches reach no class
    ],
)
def test_grad_cam_is_the_gradient_of_the_class_on_the_maps(name, layer):
    torch.manual_seed(3)
    student = Student(build_backbone(name, sizes=((64, 64),)), 3, {}, transfer_module=False).eval()
    classes = torch.tensor([0, 2])
    heat = grad_cam(student, IMAGES, classes)
    kept = []
    hook = student.backbone.get_submodule(layer).register_forward_hook(
        lambda _module, _inputs, output: (output.retain_grad(), kept.append(output))[0]
    )
    student.predict(IMAGES).gather(1, classes[:, None]).sum().backward()
    hook.remove()
    maps, slopes = kept[0].detach(), kept[0].grad
    if maps.ndim == 3:  # tokens, the first of which is the class's
        side = int((maps.shape[1] - 1) ** 0.5)
        maps, slopes = (t[:, 1:].transpose(1, 2).unflatten(2, (side, side)) for t in (maps, slopes))
    expected = (slopes.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1, keepdim=True).relu()
    expected = nn.functional.interpolate(expected, size=(64, 64), mode="bilinear", align_corners=False)[:, 0]
    assert expected.any()
    torch.testing.assert_close(heat, expected / expected.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12))


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A folder with a module of one's own, from which commands are run."""

    def write(source: str) -> str:
        name = f"nets_{abs(hash(source)) % 10**9}"
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "modules", dict(sys.modules))
        return name

    return write


def test_a_function_makes_a_student_and_only_from_where_it_lies(written, tmp_path, monkeypatch):
    name = written(
        "import torchvision\n\ndef build():\n    return torchvision.models.resnet18(num_classes=5)\n"
    )
    path = list(sys.path)
    backbone = build_backbone(f"{name}:build", sizes=((64, 64),))
    assert backbone.block_channels == (64, 128, 256, 512)
    assert sys.path == path
    assert len(source_sha256(f"{name}:build")) == 64
    assert is_reference("a.b_1:c")
    assert not any(map(is_reference, ("timm:a", "own:Net", "resnet18", "a:b:c", "a/b:c", "a:", ":b")))
    del sys.modules[name]
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(RunError, match=rf"cannot import {name} \(ModuleNotFoundError: No module named"):
        build_backbone(f"{name}:build")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 3", "the function returned a int, expected a torch.nn.Module"),
        ("raise ValueError('no\\nway')", r"the function failed \(ValueError: no\); it is called without"),
        ("return nn.Flatten(2)", r"gives \(2, 3, 4096\) for 2 images, and a student needs a feature vector"),
        ("return nn.Conv1d(3, 4, 1)", r"cannot take images \(2x3x64x64: .*choose another --size or --model"),
    ],
)
def test_a_function_that_makes_no_student_is_refused_in_one_line(written, body, message):
    name = written(f"from torch import nn\n\ndef build():\n    {body}\n")
    with pytest.raises(RunError, match=message) as refused:
        build_backbone(f"{name}:build", sizes=((64, 64),))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("resnet19", "model 'resnet19' is unknown, expected one of resnet20, .*timm:NAME, or package"),
        ("timm:resnet17", r"timm 1\S* has no network 'resnet17', did you mean resnet1"),
        ("timm:resnet18.mine", "resnet18 has no weights 'mine', expected one of .*tv_in1k"),
        ("timm:mixer_s16_224", r"cannot take images of 64 px \(Input height .*its own size is 224"),
        ("json:dumpz", r"json \(.*\) has no function 'dumpz'; check the name"),
        ("no_such_thing:build", "cannot import no_such_thing"),
    ],
)
def test_a_name_of_no_student_is_refused_in_one_line(model, message):
    with pytest.raises(RunError, match=message) as refused:
        build_backbone(model, sizes=((64, 64),))
    assert "\n" not in str(refused.value)


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        MissingExtraError, match=r"needs timm, which is not installed; run pip install 'sskt\[timm\]'"
    ):
        build_backbone("timm:resnet18")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state | {"bn1.bias": state["bn1.bias"] * float("nan")},
            "bn1.bias holds numbers that are",
        ),
        (
            lambda state: {k: v for k, v in state.items() if "layer4" not in k},
            "does not fit TimmBackbone for",
        ),
    ],
)
def test_weights_that_are_nan_or_do_not_fit_are_refused(tmp_path, change, message):
    path = tmp_path / "w.safetensors"
    backbone = TimmBackbone("resnet10t", 64)
    state = {k.removeprefix("module."): v.contiguous() for k, v in backbone.state_dict().items()}
    save_file(state | {"fc.weight": torch.zeros(4, 512), "fc.bias": torch.zeros(4)}, path)
    assert load_pretrained(backbone, path, "timm:resnet10t") == ()
    save_file(change(state), path)
    with pytest.raises(SourceError, match=message):
        load_pretrained(backbone, path, "timm:resnet10t")


def test_pretrained_weights_come_from_a_cache_or_are_missing_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    paths = Paths(tmp_path / "data")
    with pytest.raises(SourceError, match=r"timm/resnet18.a1_in1k\) are not in the caches of this machine"):
        published.published_weights("timm:resnet18", paths, given=None)
    with pytest.raises(SourceError, match="timm publishes no weights for mixer_s16_224"):
        timm_weights("mixer_s16_224")
    for model, given, message in (
        ("resnet20", None, "no weights are published for resnet20; give a file with --finetune-from"),
        ("resnet18", tmp_path / "a.pth", "--pretrained and --finetune-from .* both say what to start from"),
        (Net(), None, "--pretrained is for a student by name"),
    ):
        with pytest.raises(RunError, match=message):
            published.published_weights(model, paths, given=given)
    cached = tmp_path / "hub" / "checkpoints" / timm.get_pretrained_cfg("resnet18").url.rpartition("/")[2]
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"weights")
    assert timm_weights("resnet18") == cached
    snapshot = tmp_path / "hub" / "models--timm--resnet18.a1_in1k" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    (snapshot / "model.safetensors").write_bytes(json.dumps({}).encode())
    assert timm_weights("resnet18") == snapshot / "model.safetensors"
    kept = tmp_path / "data" / "weights" / "resnet18-f37072fd.pth"  # beside those of sources
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"not it")
    with pytest.raises(Exception, match="it is not the file at"):
        published.published_weights("resnet18", paths, given=None)
