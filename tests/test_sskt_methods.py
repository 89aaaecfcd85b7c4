"""Each method is the sum of its equations, mixtures included; schedules move the rate as they say."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sskt.errors import RunError
from sskt.losses import kd_divergence
from sskt.methods import AUXILIARY, Dml, Kd, Maxl, Mixture, Sskt
from sskt.methods.dml import DmlConfig
from sskt.methods.gradients import cosine, gated, gradients_of
from sskt.methods.kd import KdConfig
from sskt.methods.maxl import MaxlConfig
from sskt.methods.sskt import SsktConfig
from sskt.schedules import Schedule
from sskt.students import build_backbone
from sskt.students.backbone import Backbone, Features
from sskt.students.student import Student, build_student

N = 6


SETTINGS = {
    "alpha": 0.3,
    "temperature": 2.0,
    "aux_loss": "ce",
    "kd_reduction": "mean",
    "primary_loss": "ce",
}


def sskt(**more) -> SsktConfig:
    return SsktConfig(**(SETTINGS | more))


def kd(**more) -> KdConfig:
    return KdConfig(**(SETTINGS | more))


def made(**more):
    torch.manual_seed(0)
    student = build_student("resnet20", 4, {"a": 9, "b": 5}, transfer_module=False).eval()
    objective = Sskt(student, sskt(**more), channels_last=False)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (N, 3, 16, 16), generator=generator).byte()
    labels = torch.randint(0, 4, (N,), generator=generator)
    logits = {name: torch.randn(N, k, generator=generator).half() for name, k in (("a", 9), ("b", 5))}
    return student, objective, pixels, labels, logits


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def by_hand(student, pixels, labels, logits, *, smoothing: float):
    """Per row and source, in float64: primary losses (N, 4) by label, and auxiliary (N,) by truth row."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        primary, auxiliary = student((pixels / 255 - mean) / std)
    log_q = log_softmax(primary.double().numpy())
    hard = -((1 - smoothing) * log_q + smoothing * log_q.mean(axis=1, keepdims=True))
    soft = {}
    for name, z in logits.items():
        p = np.exp(log_softmax(z.double().numpy() / 2))
        q = log_softmax(auxiliary[name].double().numpy() / 2)
        soft[name] = lambda truth, p=p, q=q: 4 * -(p[truth] * q).sum(axis=1)
    return hard, soft


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("mix", ["none", "both", "sources see mixtures"])
def test_losses_are_the_equations(smoothing, mix):
    student, objective, pixels, labels, logits = made(label_smoothing=smoothing)
    rows = np.arange(N)
    partner, share = np.roll(rows, 1), 0.7
    pairs = None if mix == "none" else Mixture(torch.from_numpy(partner), torch.tensor(share))
    losses = objective(pixels, labels, logits, pairs, pairs if mix == "both" else None)
    hard, soft = by_hand(student, pixels, labels, logits, smoothing=smoothing)
    primary = hard[rows, labels].mean()
    auxiliary = {name: loss(rows).mean() for name, loss in soft.items()}
    if mix != "none":
        primary = share * primary + (1 - share) * hard[rows, labels[partner]].mean()
    if mix == "both":
        auxiliary = {n: share * v + (1 - share) * soft[n](partner).mean() for n, v in auxiliary.items()}
    assert float(losses.primary) == pytest.approx(primary, rel=1e-5)
    assert losses.auxiliary.tolist() == pytest.approx([*auxiliary.values()], rel=1e-5)
    assert losses.total.item() == pytest.approx(primary + 0.3 * sum(auxiliary.values()), rel=1e-5)
    assert losses.total.requires_grad
    assert not losses.primary.requires_grad
    assert int(losses.correct) == int((hard.argmin(axis=1) == labels.numpy()).sum())


def test_without_sources_it_is_the_hard_loss_alone():
    torch.manual_seed(0)
    student = build_student("resnet20", 4, {}, transfer_module=False).eval()
    objective = Sskt(student, sskt(alpha=9.0, aux_loss="kd"), channels_last=True)
    _, _, pixels, labels, _ = made()
    losses = objective(pixels, labels, {})
    assert losses.total.item() == losses.primary.item()
    assert len(losses.auxiliary) == 0


def rates(kind: str, losses: list[float | None], **settings) -> list[float]:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([weight], lr=1.0)
    chosen = {"epochs": len(losses), "milestones": (), "gamma": 0.1, "patience": 10, **settings}
    schedule = Schedule(optimiser, kind, **chosen)
    found = []
    for loss in losses:
        found.append(schedule.lr)
        F.mse_loss(weight, weight.detach() + 1).backward()
        optimiser.step()
        schedule.end_epoch(loss)
    return found


def test_schedules():
    assert rates("multistep", [None] * 5, milestones=(2, 4)) == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert rates("cosine", [None] * 4) == pytest.approx([0.5 * (1 + np.cos(np.pi * e / 4)) for e in range(4)])
    falling = [1.0 - 0.01 * e for e in range(5)]
    standing = [0.96] * 12
    plateau = rates("plateau", falling + standing + [0.96])
    assert plateau[:16] == pytest.approx([1.0] * 16)
    assert plateau[16:] == pytest.approx([0.1] * 2)
    assert rates("plateau", [1.0] + [None] * 20) == pytest.approx([1.0] * 21), "no evaluation, no patience"
    with pytest.raises(
        RunError, match="schedule is 'linear', expected one of multistep, plateau, cosine, trap"
    ):
        rates("linear", [None])


def softmax(z):
    return np.exp(log_softmax(z))


def test_kd_mean_is_batchmean_over_the_number_of_classes():
    torch.manual_seed(0)
    z, zs = torch.randn(6, 11), torch.randn(6, 11)
    mean, batchmean = (kd_divergence(z, zs, temperature=3.0, reduction=r) for r in ("mean", "batchmean"))
    assert batchmean.item() == pytest.approx(11 * mean.item(), rel=1e-6)


def test_distillation_is_hintons_equation():
    _, _, pixels, labels, _ = made()
    student = build_student("resnet20", 4, {}, transfer_module=False).eval()
    teachers = {name: torch.randn(N, 4) for name in ("a", "b")}
    method = Kd(
        student, kd(alpha=0.9, temperature=4.0, aux_loss="kd", kd_reduction="batchmean"),
        channels_last=False, teachers={"a": 4, "b": 4},
    )  # fmt: skip
    losses = method(pixels, labels, teachers)
    z = student.predict(_normal(pixels)).detach().double().numpy()
    hard = -log_softmax(z)[np.arange(N), labels].mean()
    q = log_softmax(z / 4)
    soft = []
    for teacher in teachers.values():
        p = softmax(teacher.double().numpy() / 4)
        soft.append(16 * (p * (np.log(p) - q)).sum(axis=1).mean())
    assert losses.auxiliary.tolist() == pytest.approx(soft, rel=1e-4)
    assert losses.total.item() == pytest.approx(0.1 * hard + 0.9 * np.mean(soft), rel=1e-4)
    with pytest.raises(RunError, match="imagenet knows 1000 classes and the target has 4"):
        Kd(student, kd(), channels_last=False, teachers={"imagenet": 1000})
    with pytest.raises(RunError, match="needs a teacher of the same task"):
        Kd(student, kd(), channels_last=False, teachers={})


def _normal(pixels):
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (pixels / 255 - mean) / std


def test_peers_learn_from_one_another_alike():
    _, _, pixels, labels, _ = made()
    peers = [build_student("resnet20", 4, {}, transfer_module=False).eval() for _ in range(3)]
    method = Dml(peers, DmlConfig(), channels_last=False)
    losses = method(pixels, labels, {})
    z = [peer.predict(_normal(pixels)).detach().double().numpy() for peer in peers]
    hard = [-log_softmax(one)[np.arange(N), labels].mean() for one in z]
    distance = [
        np.mean(
            [(softmax(o) * (log_softmax(o) - log_softmax(m))).sum(axis=1).mean() for o in z if o is not m]
        )
        for m in z
    ]
    assert losses.auxiliary.tolist() == pytest.approx(distance, rel=1e-3, abs=1e-7)
    assert losses.total.item() == pytest.approx(sum(hard) + sum(distance), rel=1e-4)
    assert losses.recorded.tolist() == pytest.approx(
        [100 * (o.argmax(1) == labels.numpy()).mean() for o in z]
    )
    swapped = Dml(peers[::-1], DmlConfig(), channels_last=False)(pixels, labels, {})
    assert swapped.total.item() == pytest.approx(losses.total.item(), rel=1e-6)
    assert swapped.auxiliary.tolist() == pytest.approx(losses.auxiliary.tolist()[::-1], rel=1e-5)
    losses.total.backward()
    expected = torch.autograd.grad(_mutual_part(peers, 1, pixels, labels), peers[1].head.weight)[
        0
    ]  # what the others say carries no gradient
    torch.testing.assert_close(peers[1].head.weight.grad, expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(RunError, match="two or more"):
        Dml(peers[:1], DmlConfig(), channels_last=False)


def _mutual_part(peers, k, pixels, labels):
    z = [peer.predict(_normal(pixels)) for peer in peers]
    mine = z[k].log_softmax(dim=1)
    others = [z[i].detach().softmax(dim=1) for i in range(len(z)) if i != k]
    distances = [(p * (p.log() - mine)).sum(dim=1).mean() for p in others]
    return F.cross_entropy(z[k], labels) + torch.stack(distances).mean()


class TinyBackbone(Backbone):
    """Small and smooth, so that finite differences say something."""

    block_channels, n_features, transfer_width = (5,), 5, 4

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(12, 5)

    def forward(self, x):
        block = torch.tanh(self.linear(F.adaptive_avg_pool2d(x, 2).flatten(1)))
        return Features([block[:, :, None, None]], block)


def test_maxls_meta_gradient_is_that_of_finite_differences():
    torch.manual_seed(0)
    _, _, pixels, _, _ = made()
    labels = torch.randint(0, 3, (N,))
    student = Student(TinyBackbone(), 3, {AUXILIARY: 6}, transfer_module=False).double()
    generator = Student(TinyBackbone(), 6, {}, transfer_module=False).double()
    method = Maxl(student, generator, MaxlConfig(alpha=1.0, psi=2), channels_last=False)
    method.rate = 0.5
    x = _normal(pixels).double()

    def loss():
        made_ = generator.predict(x).view(N, 3, 2).softmax(dim=2) * F.one_hot(labels, 3)[:, :, None]
        made_ = made_.flatten(1)
        p, a = student(x)
        inner = _focal(p, F.one_hot(labels, 3)) + _focal(a[AUXILIARY], made_.detach())
        step = torch.autograd.grad(inner, list(student.parameters()))
        ahead = copy.deepcopy(student)
        with torch.no_grad():
            for weight, gradient in zip(ahead.parameters(), step, strict=True):
                weight -= 0.5 * gradient
            mean = made_.mean(dim=0)
            return float(
                _focal(ahead(x)[0], F.one_hot(labels, 3)) + 0.2 * (mean * mean.clamp(min=1e-12).log()).sum()
            )

    made_labels = method.made_labels(x, labels)
    assert torch.allclose(made_labels.sum(dim=1), torch.ones(N, dtype=made_labels.dtype))
    assert method.generator_loss(x, labels, made_labels).item() == pytest.approx(loss(), rel=1e-5)
    method.generator_loss(x, labels, made_labels).backward()
    assert all(weight.grad is None for weight in student.parameters())
    for weight in generator.parameters():
        at = int(weight.grad.abs().argmax())
        flat, h = weight.data.view(-1), 1e-2
        flat[at] += h
        up = loss()
        flat[at] -= 2 * h
        down = loss()
        flat[at] += h
        assert float(weight.grad.view(-1)[at]) == pytest.approx((up - down) / (2 * h), rel=0.02, abs=1e-6)


def _focal(z, p):
    q = z.softmax(dim=1)
    return -(p * (1 - q) ** 2 * q.log()).sum(dim=1).mean()


def test_maxls_student_learns_its_own_two_losses():
    torch.manual_seed(0)
    _, _, pixels, _, _ = made()
    labels = torch.randint(0, 3, (N,))
    student = Student(TinyBackbone(), 3, {AUXILIARY: 6}, transfer_module=False)
    generator = Student(TinyBackbone(), 6, {}, transfer_module=False)
    method = Maxl(student, generator, MaxlConfig(alpha=0.7, psi=2), channels_last=False)
    method.rate = 0.5
    method(pixels, labels, {}).total.backward()
    p, a = student(_normal(pixels))
    made_ = method.made_labels(_normal(pixels), labels).detach()
    own = _focal(p, F.one_hot(labels, 3)) + 0.7 * _focal(a[AUXILIARY], made_)
    for weight, expected in zip(
        student.parameters(), torch.autograd.grad(own, list(student.parameters())), strict=True
    ):
        torch.testing.assert_close(weight.grad, expected, rtol=1e-4, atol=1e-7)
    of_student, of_generator = method.parameter_groups()
    assert {*of_student} == {"params"}, "the recipe's"
    plain = {"lr": 1e-3, "weight_decay": 5e-4, "momentum": 0.0, "dampening": 0.0}
    assert {k: v for k, v in of_generator.items() if k != "params"} == plain


class Branched(Backbone):
    """A transfer module sees its first block alone, and an auxiliary loss does not reach what comes after."""

    block_channels, n_features, transfer_width = (6,), 5, 4

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 6, 3, padding=1)
        self.second = torch.nn.Linear(6, 5)

    def forward(self, x):
        block = torch.tanh(self.first(F.adaptive_avg_pool2d(x, 4)))
        return Features([block], torch.tanh(self.second(block.mean(dim=(2, 3)))))


def one_by_one(student, pixels, labels, logits):
    """The gradient of every loss on every weight that it reaches, by autograd alone: name -> gradient."""
    names, weights = zip(*student.named_parameters(), strict=True)
    p, a = student(_normal(pixels))
    losses = [F.cross_entropy(p, labels), *(sskt().auxiliary(a[s], logits[s]) for s in ("a", "b"))]
    found = [torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True) for loss in losses]
    return [{n: g for n, g in zip(names, each, strict=True) if g is not None} for each in found]


def cosine_of(own, theirs) -> float:
    shared = [n for n in own if n in theirs]
    u, v = (torch.cat([g[n].flatten() for n in shared]).double() for g in (own, theirs))
    return float(u @ v / u.norm() / v.norm())


def network(kind: str) -> Student:
    torch.manual_seed(0)
    backbone = Branched() if kind == "branched" else build_backbone("resnet20")
    return Student(backbone, 4, {"a": 9, "b": 5}, transfer_module=kind == "branched").eval()


@pytest.mark.parametrize("kind", ["branched", "resnet20"])
@pytest.mark.parametrize("scale", [1.0, 2.0**16])
def test_a_gate_holds_back_the_shared_weights_alone(kind, scale):
    _, _, pixels, labels, logits = made()
    student = network(kind)
    own, *theirs = one_by_one(student, pixels, labels, logits)
    cosines = [cosine_of(own, each) for each in theirs]
    assert kind == "resnet20" or min(cosines) < 0 < max(cosines), "one gate is shut and one is open"
    method = Sskt(student, sskt(gradient_cosine="weigh"), channels_last=False)
    method.scaled = lambda loss: scale * loss  # as a gradient scaler does
    losses = method(pixels, labels, logits)
    assert losses.recorded.tolist() == pytest.approx(cosines, abs=1e-4)
    assert method.recorded_names == ("gradient_cosine/a", "gradient_cosine/b")
    assert losses.total.item() == pytest.approx(float(losses.primary + 0.3 * losses.auxiliary.sum()))
    method.scaled(losses.total).backward()
    for name, weight in student.named_parameters():
        expected = own.get(name, torch.zeros_like(weight))
        for each, c in zip(theirs, cosines, strict=True):
            gate = max(0.0, c) if name in own else 1.0
            expected = expected + 0.3 * gate * each.get(name, torch.zeros_like(weight))
        torch.testing.assert_close(weight.grad / scale, expected, rtol=1e-3, atol=1e-6)
    heads = [n for n in theirs[0] if n not in own]
    assert heads, "the auxiliary heads' own weights"
    assert kind == "resnet20" or any(n not in theirs[0] for n in own), "the primary loss's own weights"


def test_cosines_that_are_only_recorded_change_nothing():
    student, plain, pixels, labels, logits = made()
    plain(pixels, labels, logits).total.backward()
    before = [weight.grad.clone() for weight in student.parameters()]
    student.zero_grad()
    method = Sskt(student, sskt(gradient_cosine="record"), channels_last=False)
    losses = method(pixels, labels, logits)
    losses.total.backward()
    assert all(torch.equal(w.grad, g) for w, g in zip(student.parameters(), before, strict=True))
    own, *theirs = one_by_one(student, pixels, labels, logits)
    assert losses.recorded.tolist() == pytest.approx([cosine_of(own, each) for each in theirs], abs=1e-4)


def test_runs_begun_with_gated_losses_go_on_with_them():
    student, _, pixels, labels, logits = made()
    method = Sskt(student, sskt(gradient_cosine="weigh", gates="losses"), channels_last=False)
    losses = method(pixels, labels, logits)
    weighed = losses.recorded.clamp(min=0) * losses.auxiliary
    assert losses.total.item() == pytest.approx(float(losses.primary + 0.3 * weighed.sum()), rel=1e-5)
    losses.total.backward()
    _, *theirs = one_by_one(student, pixels, labels, logits)
    gate = losses.recorded.clamp(min=0)
    for n in range(2):
        name = f"auxiliary.{n}.weight"
        mine = dict(student.named_parameters())[name].grad
        torch.testing.assert_close(mine, 0.3 * gate[n] * theirs[n][name], rtol=1e-3, atol=1e-7)


def test_gradients_that_float16_would_lose_are_compared_at_the_scalers_scale():
    """Small losses in half precision: their gradients are 0 in it unless they are scaled, or infinite if
    they are scaled too much, which a scaler then sees.
    """
    torch.manual_seed(0)
    w = torch.randn(3, 8).requires_grad_()
    x = torch.randn(5, 8)

    def loss(part):
        with torch.autocast("cpu", dtype=torch.float16):
            z = F.linear(x, w)
            return 1e-9 * z[part].float().square().sum()

    exact = [torch.autograd.grad((x[p] @ w.T).square().sum(), w)[0] for p in ([0, 1, 2], [2, 3, 4])]
    expected = float(F.cosine_similarity(exact[0].flatten(), exact[1].flatten(), dim=0))
    found = {}
    for scale in (1.0, 2.0**16, 2.0**60):
        gradients = [gradients_of(loss(p), [w], lambda z, s=scale: s * z) for p in ([0, 1, 2], [2, 3, 4])]
        found[scale] = float(cosine(*gradients))
        if scale == 2.0**60:
            both = gated(gradients[0], gradients[1:], [torch.tensor(found[scale])])
            assert not torch.isfinite(both[0]).all(), "what a scaler leaves out"
    assert found[2.0**16] == pytest.approx(expected, abs=5e-3)
    assert found[2.0**60] == 0
    assert abs(found[1.0] - expected) > 0.05, "unscaled they are of little use"


def test_distillation_of_several_labels_asks_every_class_for_itself():
    _, _, pixels, _, _ = made()
    student = build_student("resnet20", 4, {}, transfer_module=False).eval()
    multi_hot, teacher = torch.randint(0, 2, (N, 4)), torch.randn(N, 4)
    settings = {"alpha": 0.9, "temperature": 4.0, "primary_loss": "bce", "kd_reduction": "mean"}
    method = Kd(student, kd(**settings, aux_loss="kd"), channels_last=False, teachers={"a": 4})
    losses = method(pixels, multi_hot, {"a": teacher})
    z = student.predict(_normal(pixels)).detach().double().numpy()
    q, p = (1 / (1 + np.exp(-v / 4)) for v in (z, teacher.double().numpy()))
    each = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    assert losses.auxiliary.tolist() == pytest.approx([16 * each.mean()], rel=1e-4)
    with pytest.raises(RunError, match="--aux-loss ce is for one label per image"):
        Kd(student, kd(**settings, aux_loss="ce"), channels_last=False, teachers={"a": 4})


def test_gradients_of_a_backbone_that_is_frozen_are_refused_in_words():
    student = build_student("resnet20", 4, {"a": 9}, transfer_module=False)
    student.freeze_until("head")
    with pytest.raises(RunError, match="--gradient-cosine record compares gradients on the backbone's weigh"):
        Sskt(student, sskt(gradient_cosine="record"), channels_last=False)
