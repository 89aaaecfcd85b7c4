"""AdamW, a cosine with a warm-up, and rates by layer, each against a computation of its own."""

import math
import re

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from sskt.errors import RunError
from sskt.optimiser import build_optimizer, by_layer, optimizer_defaults, require_layer_decay
from sskt.recipes import BY_SIZE, finetune_length, recipe_for
from sskt.schedules import Schedule
from sskt.students import WrappedBackbone, build_backbone, layer_factors
from sskt.students.student import Student

DECAY = 0.5


def rates(student: Student, lr: float = 1.0) -> dict[str, float]:
    """Each parameter's rate, as the optimiser has it."""
    backbone = student.backbone
    groups = [{"params": list(student.parameters())}]
    split = by_layer(groups, layer_factors(backbone.layers(), backbone, DECAY), lr)
    how = {"momentum": 0.9, "dampening": 0.0, "weight_decay": 0.05, "nesterov": False, "fused": False}
    optimiser = build_optimizer("adamw", split, lr=lr, decay_norms=False, **how)
    assert optimiser.param_groups[0]["lr"] == lr  # what is recorded as the run's
    assert all(group["weight_decay"] == (0.05 if w.ndim > 1 else 0.0)
               for group in optimiser.param_groups for w in group["params"])  # fmt: skip
    names = {id(weight): name for name, weight in student.named_parameters()}
    found = [(names[id(w)], group["lr"]) for group in optimiser.param_groups for w in group["params"]]
    assert len(found) == len(dict(found)) == len(names)
    return dict(found)


def of_resnet(name: str, depths: tuple[int, ...]) -> int:
    """How many layers a ResNet's parameter is below the heads: stem, then one layer per residual block."""
    if "backbone." not in name:
        return 0
    block = re.search(r"layer(\d)\.(\d+)\.", name)
    layer = 0 if block is None else 1 + sum(depths[: int(block[1]) - 1]) + int(block[2])
    return 1 + sum(depths) - layer


def of_vit(name: str, depth: int) -> int:
    """The same of a ViT, as BEiT counts: embeddings, then the blocks; the last norm goes with the last."""
    if "backbone." not in name:
        return 0
    block = re.search(r"blocks\.(\d+)\.", name)
    embeds = any(part in name for part in ("cls_token", "pos_embed", "patch_embed"))
    return depth + 1 - (0 if embeds else 1 + int(block[1]) if block else depth)


@pytest.mark.parametrize("model", ["resnet18", "resnet34", "timm:resnet18"])
def test_rates_of_a_resnet_fall_by_block(model):
    student = Student(build_backbone(model, sizes=((64, 64),)), 5, {"a": 7}, transfer_module=False)
    depths = (3, 4, 6, 3) if model == "resnet34" else (2, 2, 2, 2)
    expected = {name: DECAY ** of_resnet(name, depths) for name, _ in student.named_parameters()}
    assert len(set(expected.values())) == sum(depths) + 2
    assert rates(student) == pytest.approx(expected)


def test_rates_of_a_vit_fall_by_block_as_timm_has_them():
    student = Student(
        build_backbone("timm:test_vit", sizes=((160, 160),)), 5, {"a": 7}, transfer_module=False
    )
    net = timm.create_model("test_vit", num_classes=5)
    depth = len(net.blocks)
    found = rates(student)
    expected = {name: DECAY ** of_vit(name, depth) for name in found}
    assert len(set(expected.values())) == depth + 2
    assert found == pytest.approx(expected)
    groups = param_groups_layer_decay(net, layer_decay=DECAY)
    theirs = {id(w): group["lr_scale"] for group in groups for w in group["params"]}
    by_timm = {name: theirs[id(weight)] for name, weight in net.named_parameters()}
    ours = {name.replace("backbone.module.", ""): rate for name, rate in found.items()}
    assert {name: ours[name] for name in by_timm} == pytest.approx(by_timm)


def test_layers_of_any_module_are_those_of_its_containers():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(1, 4, 1, 1))
            self.stem = nn.Conv2d(3, 4, 3)
            self.norm = nn.BatchNorm2d(4)
            self.body = nn.ModuleList([nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()) for _ in range(3)])

        def forward(self, x):
            x = self.norm(self.stem(x)) + self.bias
            for part in self.body:
                x = part(x)
            return x

    found = WrappedBackbone(Net(), side_px=16).layers()
    layer = {"bias": 0, "stem": 0, "norm": 0, "body.0": 1, "body.1": 2, "body.2": 3}
    assert found == {name: next(n for key, n in layer.items() if name.startswith(f"module.{key}"))
                     for name in found}  # fmt: skip


@pytest.mark.parametrize("factor", [0.0, -0.5, 1.01, float("nan")])
def test_a_factor_outside_0_to_1_is_refused(factor):
    require_layer_decay(1.0)
    with pytest.raises(RunError, match=r"layer_decay is .*, expected more than 0 and at most 1, such as"):
        require_layer_decay(factor)


def test_adamw_is_torchs_on_a_toy():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    how = {"momentum": 0.8, "dampening": 0.0, "weight_decay": 0.3, "nesterov": False, "fused": False}
    mine = build_optimizer("adamw", [{"params": list(ours.parameters())}], lr=0.1, decay_norms=False, **how)
    reference = torch.optim.AdamW(
        [{"params": [theirs.weight], "weight_decay": 0.3}, {"params": [theirs.bias], "weight_decay": 0.0}],
        lr=0.1, betas=(0.8, 0.999), eps=1e-8)  # fmt: skip
    for _ in range(5):
        x = torch.randn(6, 4)
        for net, optimiser in ((ours, mine), (theirs, reference)):
            optimiser.zero_grad()
            net(x).square().sum().backward()
            optimiser.step()
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)
    decayed = nn.Parameter(torch.full((1, 1), 2.0))  # without a gradient's pull, only the decay is left
    decayed.grad = torch.zeros(1, 1)
    build_optimizer("adamw", [{"params": [decayed]}], lr=0.1, decay_norms=True, **how).step()
    assert decayed.item() == pytest.approx(2.0 * (1 - 0.1 * 0.3))


@pytest.mark.parametrize(("steps", "warm_up"), [(20, 0.25), (10, 0.0), (7, 1.0), (1, 0.1)])
def test_a_warm_up_is_a_line_and_half_a_cosine_follows(steps, warm_up):
    weight = nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([{"params": [weight]}, {"params": [], "lr": 0.1}], lr=2.0)
    unread = {"epochs": 1, "milestones": (), "gamma": 0.1, "patience": 1}
    schedule = Schedule(optimiser, "warm-cosine", steps=steps, warm_up=warm_up, **unread)
    found = []
    for step in range(steps):
        found.append([group["lr"] for group in optimiser.param_groups])
        optimiser.step()
        schedule.end_step()
        if step % 3 == 2:
            schedule.end_epoch(1.0)
    top = max(1.0, warm_up * steps)
    expected = [
        t / top if t <= top else (1 + math.cos(math.pi * (t - top) / (steps + 1 - top))) / 2
        for t in range(1, steps + 1)
    ]
    assert [first for first, _ in found] == pytest.approx([2 * factor for factor in expected])
    assert [second for _, second in found] == pytest.approx([0.1 * factor for factor in expected])
    assert min(expected) > 0
    assert schedule.lr == pytest.approx(0, abs=1e-12)


def test_the_finetune_recipe_by_number_of_images():
    recipe = recipe_for("imagefolder:a/b", name="finetune")
    assert [getattr(recipe, name) for name in BY_SIZE] == [0, 0, 0]
    lengths = {n: finetune_length(n) for n in (1, 40, 160, 450, 2000, 50_000, 10**6)}
    assert [found["epochs"] for found in lengths.values()] == [60, 60, 60, 60, 32, 6, 5]
    assert [found["batch_size"] for found in lengths.values()] == [8, 8, 16, 32, 32, 32, 32]
    for found in [*lengths.values(), finetune_length(100, batch_size=128)]:
        assert found["lr"] == pytest.approx(5e-4 * (found["batch_size"] / 32) ** 0.5)
    assert finetune_length(100, batch_size=128)["batch_size"] == 128


@pytest.mark.parametrize(
    ("chosen", "recipes", "expected"),
    [
        (None, "sgd", {}),
        ("adamw", "adamw", {}),
        ("adam", "sgd", {"lr": 1e-3, "dampening": 0.0, "nesterov": False}),
        ("adamw", "sgd", {"lr": 1e-3, "dampening": 0.0, "nesterov": False, "weight_decay": 0.05}),
        ("sgd", "adamw", {"lr": 0.01, "weight_decay": 1e-4}),
        ("adam", "adamw", {"weight_decay": 1e-4}),
        ("sgd", "adam", {}),  # as for runs begun before
    ],
)
def test_what_an_optimiser_uses_where_the_recipe_is_for_another(chosen, recipes, expected):
    assert optimizer_defaults(chosen, recipes) == expected
