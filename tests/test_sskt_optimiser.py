"""What a fast recipe changes about a step: the rate of each, what decays, and Nesterov's momentum."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from sskt.errors import RunError
from sskt.optimiser import build_optimizer, require_adam, require_nesterov
from sskt.recipes import RECIPES, all_recipes, recipe_for
from sskt.schedules import Schedule, require_trapezoid
from sskt.students import build_backbone
from sskt.students.average import AveragedStudent, require_decay
from sskt.students.student import Student, build_student

PLAIN = {"momentum": 0.9, "dampening": 0.0, "weight_decay": 0.1, "nesterov": False, "fused": False}


def scheduled(steps: int, **settings) -> tuple[torch.optim.SGD, Schedule]:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.01)]
    optimiser = torch.optim.SGD(groups, lr=1.0)
    unread = {"epochs": 1, "milestones": (), "gamma": 0.1, "patience": 1}
    return optimiser, Schedule(optimiser, "trapezoid", steps=steps, **unread, **settings)


def rates(optimiser: torch.optim.SGD, schedule: Schedule, n: int) -> list[list[float]]:
    """Of each group at `n` steps, in epochs of three."""
    found = []
    for step in range(n):
        found.append([group["lr"] for group in optimiser.param_groups])
        optimiser.step()
        schedule.end_step()
        if step % 3 == 2:
            schedule.end_epoch(1.0)
    return found


@pytest.mark.parametrize(("warm_up", "cool_down"), [(0.2, 0.5), (0.2, 0.8), (0.5, 0.0), (0.0, 1.0)])
def test_a_trapezoid_rises_stays_and_falls_to_zero(warm_up, cool_down):
    steps = 20
    corners = [0, warm_up * steps, (1 - cool_down) * steps, steps]
    rising = np.interp(np.arange(1, steps + 1), corners[:2], [0, 1]) if warm_up else np.ones(steps)
    falling = np.interp(np.arange(steps), corners[2:], [1, 0]) if cool_down else np.ones(steps)
    first, second = zip(*rates(*scheduled(steps, warm_up=warm_up, cool_down=cool_down), steps), strict=True)
    assert first == pytest.approx(np.minimum(rising, falling))
    assert second == pytest.approx(0.01 * np.minimum(rising, falling))
    assert min(first) > 0


def test_a_trapezoid_by_hand():
    optimiser, schedule = scheduled(10, warm_up=0.2, cool_down=0.5)
    first = [lr for lr, _ in rates(optimiser, schedule, 10)]
    assert first == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    assert schedule.lr == 0
    assert rates(*scheduled(1), 1)[0][0] == 1


def test_a_trapezoid_goes_on_within_an_epoch():
    whole = rates(*scheduled(11), 11)
    optimiser, schedule = scheduled(11)
    before = rates(optimiser, schedule, 4)
    states = optimiser.state_dict(), schedule.state_dict()
    optimiser, schedule = scheduled(11)
    optimiser.load_state_dict(states[0])
    schedule.load_state_dict(states[1])
    assert before + rates(optimiser, schedule, 7) == whole


def test_fractions_of_the_steps_that_overlap_are_refused():
    require_trapezoid(0.7, 0.3)
    with pytest.raises(
        RunError, match=r"--warm-up 0.4 and --cool-down 0.7 are fractions of all steps, which"
    ):
        require_trapezoid(0.4, 0.7)


@pytest.mark.parametrize("model", ["resnet20", "mobilenet_v2", "resnet3d10"])
def test_norms_and_biases_do_not_decay_and_all_else_does(model):
    student = build_student(model, 4, {"a": 7}, transfer_module=True)
    norms = [m for m in student.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms
    spared = {id(w) for m in norms for w in m.parameters()}
    spared |= {id(w) for name, w in student.named_parameters() if name.rpartition(".")[2] == "bias"}
    groups = [{"params": list(student.parameters())}]
    optimiser = build_optimizer("sgd", groups, lr=0.1, decay_norms=False, **PLAIN)
    decays = {id(w): group["weight_decay"] for group in optimiser.param_groups for w in group["params"]}
    assert len(decays) == sum(len(group["params"]) for group in optimiser.param_groups)
    assert decays == {id(w): 0.0 if id(w) in spared else 0.1 for w in student.parameters()}
    (group,) = build_optimizer("sgd", groups, lr=0.1, decay_norms=True, **PLAIN).param_groups
    assert group["weight_decay"] == 0.1


def test_a_group_keeps_its_own_settings():
    groups = [{"params": [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))], "lr": 0.5}]
    groups.append({"params": [nn.Parameter(torch.ones(3))], "weight_decay": 7.0, "momentum": 0.0})
    made = build_optimizer("sgd", groups, lr=0.1, decay_norms=False, **PLAIN).param_groups
    assert [(g["lr"], g["momentum"], g["weight_decay"]) for g in made] == [
        (0.5, 0.9, 0.1),
        (0.5, 0.9, 0.0),
        (0.1, 0.0, 0.0),
    ]


def test_nesterovs_momentum_by_hand():
    weight = nn.Parameter(torch.tensor([[2.0]]))
    optimiser = build_optimizer(
        "sgd", [{"params": [weight]}], lr=0.1, decay_norms=False, **(PLAIN | {"nesterov": True})
    )
    expected, velocity = 2.0, 0.0
    for gradient in (1.0, -0.5, 3.0):
        weight.grad = torch.tensor([[gradient]])
        optimiser.step()
        slope = gradient + 0.1 * expected
        velocity = 0.9 * velocity + slope
        expected -= 0.1 * (slope + 0.9 * velocity)
        assert weight.item() == pytest.approx(expected)


@pytest.mark.parametrize(("momentum", "dampening"), [(0.0, 0.0), (0.9, 0.9)])
def test_what_is_no_nesterovs_momentum_is_refused(momentum, dampening):
    with pytest.raises(
        RunError, match=r"--nesterov needs a momentum above 0 without dampening, .* use --no-n"
    ):
        require_nesterov(momentum, dampening)
    with pytest.raises(ValueError, match="Nesterov"):  # as torch has it
        torch.optim.SGD([nn.Parameter(torch.ones(1))], momentum=momentum, dampening=dampening, nesterov=True)


@pytest.mark.parametrize("fused", [False, True])
def test_adam_by_hand(fused):
    """Momentum is the first beta; the decay is added to the gradient; a vector has none."""
    matrix, vector = nn.Parameter(torch.tensor([[2.0]])), nn.Parameter(torch.tensor([2.0]))
    groups, how = [{"params": [matrix, vector]}], PLAIN | {"momentum": 0.8, "fused": fused}
    optimiser = build_optimizer("adam", groups, lr=0.1, decay_norms=False, **how)
    expected, means, squares = np.array([2.0, 2.0]), np.zeros(2), np.zeros(2)
    for step, gradient in enumerate((1.0, -0.5, 3.0), start=1):
        matrix.grad, vector.grad = torch.tensor([[gradient]]), torch.tensor([gradient])
        optimiser.step()
        slopes = gradient + np.array([0.1, 0.0]) * expected
        means = 0.8 * means + 0.2 * slopes
        squares = 0.999 * squares + 0.001 * slopes**2
        moved = means / (1 - 0.8**step) / (np.sqrt(squares / (1 - 0.999**step)) + 1e-8)
        expected = expected - 0.1 * moved
        assert [matrix.item(), vector.item()] == pytest.approx(expected, rel=1e-5)


def test_what_adam_does_not_have_is_refused():
    require_adam("adam", 0.9, 0.0, nesterov=False)
    for settings, option in (((0.9, 0.0, True), "--nesterov"), ((0.9, 0.9, False), "dampening 0.9")):
        for kind in ("adam", "adamw"):
            with pytest.raises(RunError, match=rf"--optimizer {kind} has no {option}; leave it out, or use"):
                require_adam(kind, *settings)
    with pytest.raises(RunError, match=r"needs a momentum below 1, its first beta, this run has 1; use 0.9"):
        require_adam("adam", 1, 0.0, nesterov=False)


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_an_average_is_that_of_the_steps(decay):
    """As in earlier runs, of weights and batch norm statistics alike, the share of the first ones shrinking
    from step 1 on.
    """
    torch.manual_seed(0)
    student = build_student("resnet20", 4, {"a": 3}, transfer_module=False)
    average, expected = AveragedStudent(student, decay, matched=False), {}
    for step in range(12):
        with torch.no_grad():
            for weight in student.parameters():
                weight += torch.randn(weight.shape)
        student.train()(torch.randn(2, 3, 32, 32))
        average.update_parameters(student)
        d = min(decay, (1 + step) / (10 + step)) if step else 0.0
        for name, value in student.state_dict().items():
            if value.is_floating_point():
                expected[name] = d * expected.get(name, 0.0) + (1 - d) * value.double()
            else:
                expected[name] = value.clone()
    found = average.module.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value.double(), rtol=1e-5, atol=1e-5)
    assert int(found["backbone.bn1.num_batches_tracked"]) == 12
    assert isinstance(average.module, Student)
    assert isinstance(average, AveragedModel)
    assert not any(weight.requires_grad for weight in average.parameters())


@pytest.mark.parametrize(("decay", "n_steps", "lag"), [(0.5, 40, 1.0), (0.96, 400, 24.0)])
def test_statistics_lag_as_far_as_the_averaged_weights(decay, n_steps, lag):
    """Of weights that are t at step t, and of activations whose mean is t there, as a batch norm averages it:
    those weights are t - lag, and the mean t - 9, or t - lag if that is less.
    """
    student = build_student("resnet20", 4, {}, transfer_module=False)
    average, earlier = AveragedStudent(student, decay), AveragedStudent(student, decay, matched=False)
    weight, mean = student.backbone.bn1.weight, student.backbone.bn1.running_mean
    for step in range(n_steps):
        with torch.no_grad():
            weight.fill_(step)
            mean.lerp_(torch.full_like(mean, step), 0.1)
        for each in (average, earlier):
            each.update_parameters(student)
    found = [(n_steps - 1 - norm.weight[0], n_steps - 1 - norm.running_mean[0])
             for norm in (average.module.backbone.bn1, earlier.module.backbone.bn1)]  # fmt: skip
    assert found[0] == (pytest.approx(lag, abs=0.3), pytest.approx(max(lag, 9.0), abs=0.3))
    assert found[1] == (pytest.approx(lag, abs=0.3), pytest.approx(lag + 9.0, abs=0.3))


def test_a_student_that_cannot_be_copied_has_no_average():
    class Single(nn.Module):
        def __deepcopy__(self, _memo):
            raise TypeError("there is one of me\nand no other")

    student = Student(build_backbone("resnet20"), 4, {}, False)
    student.backbone.single = Single()
    with pytest.raises(RunError, match=r"cannot be copied \(there is one of me\); use --ema 0"):
        AveragedStudent(student, 0.9)
    for decay in (1.0, -0.1, float("nan")):
        with pytest.raises(RunError, match=r"ema is .*, expected at least 0 and less than 1"):
            require_decay(decay)


def test_every_image_target_has_a_fast_recipe_shorter_than_the_papers_but_for_folders():
    fast = {recipe.target: recipe for recipe in all_recipes() if recipe.name == "fast"}
    videos = {"ucf101", "hmdb51", "ccv", "videofolder"}
    assert set(fast) == {recipe.target for recipe in all_recipes() if recipe.name == "paper"} - videos
    for target, recipe in fast.items():
        paper = recipe_for(target)
        assert recipe == recipe_for(target, name="fast")
        assert 4 * recipe.epochs <= paper.epochs or recipe.epochs == paper.epochs == 60, target
        # one cycle: the mean rate is half the largest one, and per image that of the paper's first epochs
        assert recipe.lr / 2 / recipe.batch_size == pytest.approx(paper.lr / paper.batch_size), target
        assert recipe.warm_up + recipe.cool_down == 1
        assert (recipe.schedule, recipe.published) == ("trapezoid", False)
        assert (recipe.models, recipe.primary_loss) == (paper.models, paper.primary_loss)
    assert fast["cifar10"].epochs == 40
    assert recipe_for("voc", name="fast", finetuned=True).lr == 0.01
    assert recipe_for("imagefolder:a/b", "kd", name="fast").temperature == 4.0


def test_a_recipe_that_there_is_not_is_refused():
    for target, method, name, message in (
        ("ucf101", "sskt", "fast", "--recipe fast: there is none for ucf101, only for cifar10, cifar100, "),
        ("cifar10", "maxl", "fast", "--recipe fast: --method maxl has its own schedule; use --recipe paper"),
        ("cifar10", "sskt", "slow", "recipe is 'slow', expected one of paper, fast"),
        ("mnist", "sskt", "fast", "'mnist' has no recipe, expected one of cifar10"),
    ):
        with pytest.raises(RunError, match=message):
            recipe_for(target, method, name=name)
    assert RECIPES == ("paper", "fast", "finetune")
