"""Stage two: train a target network on its own labels and, through one auxiliary head per source, on what the sources said.

L = L_prim + alpha * sum_m L_aux(m) (SSKT eq. 1, 5, 7). Pixels come from the plan's view of the epoch, source logits from `Labels` by
sample; SGD with momentum and a multi-step schedule (table 1). Exact resume is not built yet: last.pt holds what it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from pipeline.evaluate import accuracy, autocast
from pipeline.labels import Labels
from pipeline.plan import Plan
from pipeline.precompute import Execution
from pipeline.progress import Progress
from pipeline.render import Positions, open_renderer
from pipeline.run import Run
from pipeline.targets.index import TargetIndex
from sskt.errors import RunError
from sskt.frozen import IMAGENET_MEAN, IMAGENET_STD, normalise
from sskt.losses import kd_divergence, soft_cross_entropy
from sskt.student import Student, build_student


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Everything that changes the numbers of a run, as plain data; how it is executed is `Execution`."""

    target: str
    classes: tuple[str, ...]
    model: str
    method: str  # "sskt" or "scratch"
    sources: tuple[str, ...]
    transfer_module: bool
    aux_loss: str  # "ce" or "kd"
    kd_reduction: str  # "mean" over batch and classes, as released, or "batchmean"
    temperature: float
    alpha: float
    labels: str  # "cached", "live" or "none"
    views: int | None  # None: every epoch draws a view of its own
    epochs: int
    batch_size: int
    lr: float
    milestones: tuple[int, ...]
    gamma: float
    momentum: float
    weight_decay: float
    seed: int
    limit: int | None
    eval_every: int  # epochs between two looks at the test split; the last epoch always has one
    amp: str  # precision of the student's forward: fp32 or bf16
    plan: dict[str, Any]
    eval_plan: dict[str, int]


@dataclass(slots=True)
class _Epoch:
    """Sums over one epoch."""

    n: int = 0
    correct: int = 0
    primary: float = 0.0
    auxiliary: dict[str, float] = field(default_factory=dict)
    data_s: float = 0.0
    label_s: float = 0.0


def train(
    config: TrainConfig,
    train_index: TargetIndex,
    test_index: TargetIndex,
    *,
    plan: Plan,
    eval_plan: Plan,
    labels: Labels | None,
    execution: Execution,
    run: Run,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Train, log every epoch, export the student; returns the summary that is also written to the run.

    Raises RunError, naming epoch and samples, when the loss is no longer finite; the checkpoint of the last whole epoch stays.
    """
    torch.manual_seed(config.seed)
    source_classes = labels.n_classes if labels else {}
    student = build_student(config.model, len(train_index.classes), source_classes, config.transfer_module)
    student.to(execution.device)
    optimiser = torch.optim.SGD(
        student.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, list(config.milestones), gamma=config.gamma)
    renderer = open_renderer(
        train_index,
        plan,
        backend=execution.renderer,
        device=execution.device,
        batch_size=config.batch_size,
        threads=execution.threads,
    )
    history: list[dict[str, Any]] = []
    with (
        closing(renderer),
        Progress(f"train {config.target}", total=config.epochs * len(train_index)) as progress,
    ):
        for epoch in range(config.epochs):
            started = perf_counter()
            view = labels.view_of(epoch) if labels else _own_view(epoch, config.views)
            sums = _Epoch()
            if labels:
                labels.load(view)
                sums.label_s = perf_counter() - started
            batches = shuffled_batches(len(train_index), config.batch_size, seed=config.seed, epoch=epoch)
            student.train()
            pixel_batches = renderer.render(view, batches)
            for positions in batches:
                waited = perf_counter()
                pixels = next(pixel_batches).to(execution.device, non_blocking=True)
                sums.data_s += perf_counter() - waited
                _step(config, student, optimiser, labels, train_index, positions, pixels, sums, epoch)
                progress.advance(len(positions), note=_note(epoch, history))
            pixel_batches.close()  # type: ignore[attr-defined]
            epoch_s = perf_counter() - started
            metrics = _metrics(epoch, view, float(schedule.get_last_lr()[0]), sums, epoch_s)
            schedule.step()
            if (epoch + 1) % config.eval_every == 0 or epoch + 1 == config.epochs:
                metrics |= accuracy(student, test_index, eval_plan, execution, config.amp)
            history.append(metrics)
            run.log_epoch(metrics)
            run.save_checkpoint(
                {
                    "epoch": epoch + 1,
                    "config": asdict(config),
                    "student": student.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "schedule": schedule.state_dict(),
                }
            )
    run.save_student(student.exported_state())
    summary = _summary(config, history)
    run.finish(summary)
    say(_sentence(summary))
    return summary


def shuffled_batches(n: int, batch_size: int, *, seed: int, epoch: int) -> list[Positions]:
    """Every position 0..n-1 once, in an order that is a function of (seed, epoch), in ceil(n / batch_size) even batches.

    Even batches differ by at most one sample, so the last is never a handful with batch statistics of its own.
    """
    order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(n)
    return np.array_split(order, -(-n // batch_size))


def auxiliary_loss(config: TrainConfig, logits: torch.Tensor, source_logits: torch.Tensor) -> torch.Tensor:
    """L_aux of one source head (SSKT eq. 2, 3): logits and source_logits float32 (N, K); a scalar."""
    if config.aux_loss == "ce":
        return soft_cross_entropy(logits, source_logits, temperature=config.temperature)
    return kd_divergence(logits, source_logits, temperature=config.temperature, reduction=config.kd_reduction)


def _step(
    config: TrainConfig,
    student: Student,
    optimiser: torch.optim.Optimizer,
    labels: Labels | None,
    index: TargetIndex,
    positions: Positions,
    pixels: torch.Tensor,
    sums: _Epoch,
    epoch: int,
) -> None:
    """One optimisation step; adds its figures to `sums`."""
    asked = perf_counter()
    source_logits = labels.logits(positions, pixels) if labels else {}
    sums.label_s += perf_counter() - asked
    truth = torch.from_numpy(index.labels[positions]).to(pixels.device)
    with autocast(pixels.device, config.amp):
        primary_logits, auxiliary_logits = student(normalise(pixels, IMAGENET_MEAN, IMAGENET_STD))
    primary = F.cross_entropy(primary_logits.float(), truth)
    auxiliary = {
        name: auxiliary_loss(config, logits.float(), source_logits[name].float())
        for name, logits in auxiliary_logits.items()
    }
    loss = primary + config.alpha * sum(auxiliary.values(), start=torch.zeros_like(primary))
    if not torch.isfinite(loss):
        ids = ", ".join(str(i) for i in index.ids[positions][:5])
        raise RunError(
            f"{config.target}: the loss is {loss.item()} in epoch {epoch + 1} (samples {ids}, ...); "
            f"lower --lr or --alpha; the last whole epoch is kept in last.pt"
        )
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    sums.n += len(positions)
    sums.correct += int((primary_logits.argmax(dim=1) == truth).sum())
    sums.primary += primary.detach().item() * len(positions)
    for name, value in auxiliary.items():
        sums.auxiliary[name] = sums.auxiliary.get(name, 0.0) + value.detach().item() * len(positions)


def _own_view(epoch: int, views: int | None) -> int:
    return epoch if views is None else epoch % views


def _metrics(epoch: int, view: int, lr: float, sums: _Epoch, epoch_s: float) -> dict[str, Any]:
    auxiliary = {f"aux_loss/{name}": total / sums.n for name, total in sums.auxiliary.items()}
    return {
        "epoch": epoch + 1,
        "view": view,
        "lr": lr,
        "train_loss": sums.primary / sums.n,
        **auxiliary,
        "train_top1": 100 * sums.correct / sums.n,
        "epoch_s": epoch_s,
        "label_s": sums.label_s,
        "data_wait_s": sums.data_s,
        "images_s": sums.n / epoch_s,
    }


def _summary(config: TrainConfig, history: list[dict[str, Any]]) -> dict[str, Any]:
    last = history[-1] if history else {}
    return {
        "target": config.target,
        "model": config.model,
        "method": config.method,
        "sources": list(config.sources),
        "labels": config.labels,
        "seed": config.seed,
        "epochs": len(history),
        "test_top1": last.get("test_top1"),
        "best_test_top1": max((m["test_top1"] for m in history if "test_top1" in m), default=None),
        "train_top1": last.get("train_top1"),
        "epoch_s": float(np.median([m["epoch_s"] for m in history])) if history else None,
        "label_s": float(np.median([m["label_s"] for m in history])) if history else None,
    }


def _sentence(summary: dict[str, Any]) -> str:
    test = (
        ""
        if summary["test_top1"] is None
        else f"test top-1 {summary['test_top1']:.2f} % (best {summary['best_test_top1']:.2f}), "
    )
    return f"{summary['epochs']} epochs: {test}{summary['epoch_s']:.1f} s an epoch, of which source logits {summary['label_s']:.2f} s"


def _note(epoch: int, history: list[dict[str, Any]]) -> str:
    last = f", test {history[-1]['test_top1']:.1f} %" if history and "test_top1" in history[-1] else ""
    return f"epoch {epoch + 1}{last}"
