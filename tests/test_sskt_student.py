"""Backbones, transfer module and student against torchvision, published sizes and re-computations."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision

from sskt.errors import RunError
from sskt.recipes import recipe_for
from sskt.students import BACKBONES, CLIP_BACKBONES, build_backbone
from sskt.students.cifar_resnet import CifarResNet, ResidualUnit
from sskt.students.pretrained import load_pretrained
from sskt.students.student import build_student
from sskt.students.transfer import TransferModule

SOURCES = {"imagenet": 10, "program:places365_squeezenet.pt2": 7}


ALEXNETS = {"alexnet": 0, "alexnet-small": 0}  # see test_sskt_backbones_graph.py


def n_parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("depth", "published"),
    [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)],
)
def test_cifar_resnet_has_the_published_number_of_parameters(depth, published):
    assert n_parameters(build_student(f"resnet{depth}", 10, {}, False)) == published


@pytest.mark.parametrize("name", [name for name in BACKBONES if name not in CLIP_BACKBONES | ALEXNETS])
def test_backbone_yields_what_it_declares(name):
    backbone = build_backbone(name).eval()
    with torch.inference_mode():
        features = backbone(torch.zeros(2, 3, 64, 64))
    assert tuple(block.shape[1] for block in features.blocks) == backbone.block_channels
    assert features.pooled.shape == (2, backbone.n_features)
    torch.testing.assert_close(features.pooled, F.adaptive_avg_pool2d(features.blocks[-1], 1).flatten(1))
    sides = [block.shape[2] for block in features.blocks]
    first = 64 if isinstance(backbone, CifarResNet) else 32 if name in ("mobilenet_v2", "vgg16") else 16
    assert sides == [first >> stage for stage in range(len(sides))]


@pytest.mark.parametrize(
    ("name", "published"), [("mobilenet_v2", 3_504_872), ("densenet121", 7_978_856), ("vgg16", 14_728_266)]
)
def test_small_networks_have_the_published_numbers_of_parameters(name, published):
    """With the head for 1,000 classes; VGG16 as it is known for CIFAR-10, with one for ten."""
    assert n_parameters(build_student(name, 10 if name == "vgg16" else 1000, {}, False)) == published


@pytest.mark.parametrize("name", ["mobilenet_v2", "densenet121"])
def test_small_networks_give_torchvisions_logits_for_torchvisions_weights(name, tmp_path):
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, weights=None, num_classes=5).eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    ours = build_student(name, 5, {}, False).eval()
    load_pretrained(ours.backbone, tmp_path / "theirs.pth", name)
    head = theirs.classifier[-1] if name == "mobilenet_v2" else theirs.classifier
    ours.head.load_state_dict(head.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours.predict(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_imagenet_resnet_gives_torchvisions_logits_for_torchvisions_weights(name):
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, weights=None, num_classes=5).eval()
    ours = build_student(name, 5, {}, False).eval()
    state = theirs.state_dict()
    fc = {key.replace("fc.", ""): state.pop(key) for key in ("fc.weight", "fc.bias")}
    ours.backbone.load_state_dict(state, strict=True)
    ours.head.load_state_dict(fc, strict=True)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours.predict(x), theirs(x), rtol=1e-6, atol=1e-6)


def test_option_a_shortcut_takes_every_second_pixel_and_pads_channels_with_zeros():
    x = torch.randn(2, 16, 9, 9)
    unit = ResidualUnit(16, 32, stride=2).eval()
    expected = np.zeros((2, 32, 5, 5), dtype=np.float32)
    expected[:, 8:24] = x.numpy()[:, :, ::2, ::2]
    np.testing.assert_array_equal(unit.shortcut(x).numpy(), expected)
    torch.nn.init.zeros_(unit.bn2.weight)  # kills the residual, so that the shortcut alone is seen
    np.testing.assert_array_equal(unit(x).detach().numpy(), np.maximum(expected, 0))
    assert ResidualUnit(16, 16, stride=1).shortcut(x) is x


def test_cifar_resnet_starts_with_kaiming_variance():
    torch.manual_seed(0)
    weight = build_backbone("resnet20").layer3[2].conv2.weight.detach()
    assert float(weight.std()) == pytest.approx(np.sqrt(2 / (64 * 9)), rel=0.02)


@pytest.mark.parametrize("training", [True, False])
def test_transfer_module_is_the_written_recipe(training):
    torch.manual_seed(0)
    channels, width, n_classes = (4, 6, 10), 8, 5
    module = TransferModule(channels, width, n_classes).double().train(training)
    for name, buffer in module.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    blocks = [torch.randn(3, c, s, s, dtype=torch.float64) for c, s in zip(channels, (9, 5, 2), strict=True)]
    state = {key: value.clone() for key, value in module.state_dict().items()}
    got = module(blocks)

    pooled = []
    for b, x in enumerate(blocks):
        for conv, stride, pad in ((0, 1, 0), (3, 2, 1), (6, 1, 0)):
            weight = state[f"bottlenecks.{b}.{conv}.weight"]
            assert weight.shape[0] == (width if conv == 6 else width // 2)
            assert weight.shape[2:] == ((3, 3) if conv == 3 else (1, 1))
            x = F.conv2d(x, weight, stride=stride, padding=pad)
            bn = {
                key: state[f"bottlenecks.{b}.{conv + 1}.{key}"]
                for key in ("running_mean", "running_var", "weight", "bias")
            }
            mean = x.mean((0, 2, 3)) if training else bn["running_mean"]
            var = x.var((0, 2, 3), unbiased=False) if training else bn["running_var"]
            x = (x - mean[:, None, None]) / torch.sqrt(var + 1e-5)[:, None, None]
            x = torch.clamp(x * bn["weight"][:, None, None] + bn["bias"][:, None, None], min=0)
        pooled.append(x.sum((2, 3)) / (x.shape[2] * x.shape[3]))
    expected = sum(pooled) / 3 @ state["linear.weight"].T + state["linear.bias"]
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    assert not any(key.endswith(("0.bias", "3.bias", "6.bias")) for key in state), "convolutions have no bias"


@pytest.mark.parametrize("transfer_module", [True, False])
def test_student_gives_one_head_per_source(transfer_module):
    student = build_student("resnet20", 4, SOURCES, transfer_module)
    primary, auxiliary = student(torch.randn(2, 3, 32, 32))
    assert primary.shape == (2, 4)
    assert {name: logits.shape for name, logits in auxiliary.items()} == {
        name: (2, n) for name, n in SOURCES.items()
    }
    sum(logits.sum() for logits in auxiliary.values()).backward()
    assert student.backbone.conv1.weight.grad.abs().sum() > 0, "auxiliary losses must reach the backbone"


def test_auxiliary_head_without_transfer_module_reads_the_feature_of_the_primary_head():
    student = build_student("resnet20", 4, {"imagenet": 10}, False).eval()
    x = torch.randn(2, 3, 32, 32)
    _, auxiliary = student(x)
    torch.testing.assert_close(auxiliary["imagenet"], student.auxiliary[0](student.backbone(x).pooled))


@pytest.mark.parametrize("transfer_module", [True, False])
@pytest.mark.parametrize("model", ["resnet20", "resnet18"])
def test_scratch_and_sskt_start_from_the_same_network(model, transfer_module):
    torch.manual_seed(7)
    scratch = build_student(model, 4, {}, False).state_dict()
    torch.manual_seed(7)
    taught = build_student(model, 4, SOURCES, transfer_module).exported_state()
    assert scratch.keys() == taught.keys()
    assert all(torch.equal(scratch[key], taught[key]) for key in scratch)


def test_exported_state_loads_strictly_without_sources_and_predicts_the_same():
    student = build_student("resnet20", 4, SOURCES, True)
    x = torch.randn(4, 3, 32, 32)
    student(x)  # moves the running statistics
    student.eval()
    again = build_student("resnet20", 4, {}, False).eval()
    again.load_state_dict(student.exported_state(), strict=True)
    with torch.inference_mode():
        assert torch.equal(again.predict(x), student.predict(x))
        assert torch.equal(student(x)[0], student.predict(x))


def test_unknown_model_lists_what_exists():
    with pytest.raises(RunError, match="model 'resnet19' is unknown, expected one of resnet20, resnet32"):
        build_student("resnet19", 4, {}, False)


@pytest.mark.parametrize(
    ("target", "lr", "milestones", "gamma", "weight_decay", "model"),
    [
        ("cifar10", 0.1, (150, 250, 350), 0.1, 5e-4, "resnet20"),
        ("cifar100", 0.1, (60, 120, 160, 200), 0.2, 5e-4, "resnet20"),
        ("stl10", 0.1, (60, 120, 160, 200), 0.2, 5e-4, "resnet20"),
        ("places365", 0.1, (30, 60, 90), 0.1, 1e-4, "resnet18"),
        ("imagenet", 0.1, (30, 60, 90), 0.1, 1e-4, "resnet18"),
    ],
)
def test_recipe_is_the_row_of_table_1(target, lr, milestones, gamma, weight_decay, model):
    recipe = recipe_for(target)
    assert (recipe.lr, recipe.milestones, recipe.gamma) == (lr, milestones, gamma)
    assert (recipe.weight_decay, recipe.momentum, recipe.batch_size) == (weight_decay, 0.9, 128)
    assert (recipe.temperature, recipe.alpha, recipe.aux_loss) == (3.0, 0.1, "ce")
    assert recipe.models[0] == model
    assert recipe.published
    assert recipe.target == target


@pytest.mark.parametrize(
    "target", ["cifar10", "cifar100", "stl10", "imagenet", "places365", "digits", "imagefolder:x/y"]
)
def test_recipe_ends_after_its_last_milestone_and_names_models_that_exist(target):
    recipe = recipe_for(target)
    assert recipe.target == target
    assert list(recipe.milestones) == sorted(recipe.milestones)
    if target == "stl10":  # the authors' command has --epochs 200, table 1 a milestone there
        assert recipe.epochs == recipe.milestones[-1] == 200
    else:
        assert recipe.epochs > recipe.milestones[-1]
    assert set(recipe.models) <= set(BACKBONES)


def test_recipes_of_our_own_say_so():
    assert not recipe_for("digits").published
    assert not recipe_for("imagefolder:scenes").published
    with pytest.raises(RunError, match="'mnist' has no recipe, expected one of cifar10"):
        recipe_for("mnist")
