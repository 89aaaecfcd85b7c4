"""The objective is the sum of the equations, mixtures included; schedules move the rate as they say."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sskt.errors import RunError
from sskt.objective import Objective, Pairs
from sskt.schedules import Schedule
from sskt.student import build_student

N = 6


def made(**more):
    torch.manual_seed(0)
    student = build_student("resnet20", 4, {"a": 9, "b": 5}, transfer_module=False).eval()
    settings = {
        "alpha": 0.3,
        "temperature": 2.0,
        "aux_loss": "ce",
        "kd_reduction": "mean",
        "primary_loss": "ce",
        "label_smoothing": 0.0,
        "channels_last": False,
        **more,
    }
    objective = Objective(student, **settings)
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
    pairs = None if mix == "none" else Pairs(torch.from_numpy(partner), torch.tensor(share))
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
    settings = {
        "alpha": 9.0,
        "temperature": 2.0,
        "aux_loss": "kd",
        "kd_reduction": "mean",
        "primary_loss": "ce",
    }
    objective = Objective(student, **settings, label_smoothing=0.0, channels_last=True)
    _, _, pixels, labels, _ = made()
    losses = objective(pixels, labels, {})
    assert losses.total.item() == losses.primary.item()
    assert len(losses.auxiliary) == 0


def rates(kind: str, losses: list[float | None], **settings) -> list[float]:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([weight], lr=1.0)
    chosen = {"epochs": len(losses), "milestones": (), "gamma": 0.1, **settings}
    schedule = Schedule(optimiser, kind, **chosen)
    found = []
    for loss in losses:
        found.append(schedule.lr)
        F.mse_loss(weight, weight.detach() + 1).backward()
        optimiser.step()
        schedule.step(loss)
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
    with pytest.raises(RunError, match="schedule is 'linear', expected one of multistep, plateau, cosine"):
        rates("linear", [None])
