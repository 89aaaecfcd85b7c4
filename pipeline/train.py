"""Stage two: train a target network on its own labels and, through one auxiliary head per source, on what the
sources said.

L = L_prim + alpha * sum_m L_aux(m) (SSKT eq. 1, 5, 7). Pixels come from the plan's view of the epoch, source
logits from `Labels` by sample; SGD with momentum and a multi-step schedule (table 1). Exact resume is not
built yet: last.pt holds what it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from pipeline.evaluate import accuracy, autocast
from pipeline.execution import Execution
from pipeline.labels import Labels
from pipeline.plan import Plan
from pipeline.progress import Progress
from pipeline.render import Positions, Renderer
from pipeline.run import Run
from pipeline.targets.index import TargetIndex
from sskt.errors import RunError
from sskt.frozen import IMAGENET_MEAN, IMAGENET_STD, normalise
from sskt.losses import kd_divergence, soft_cross_entropy
from sskt.student import build_student


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
class _Sums:
    """What one epoch adds up: losses and hits over samples, seconds spent on pixels and source logits."""

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

    Raises RunError, naming epoch and samples, when the loss is no longer finite; the checkpoint of the last
    whole epoch stays.
    """
    trainer = Trainer(config, train_index, labels, execution.device)
    renderer = execution.open_renderer(train_index, plan, batch_size=config.batch_size)
    history: list[dict[str, Any]] = []
    progress = Progress(f"train {config.target}", total=config.epochs * len(train_index))
    with closing(renderer), progress:
        for epoch in range(config.epochs):
            metrics = trainer.epoch(epoch, renderer, partial(progress.advance, note=_note(epoch, history)))
            if (epoch + 1) % config.eval_every == 0 or epoch + 1 == config.epochs:
                metrics |= accuracy(trainer.student, test_index, eval_plan, execution, config.amp)
            history.append(metrics)
            run.log_epoch(metrics)
            run.save_checkpoint(trainer.state(epoch))
    run.save_student(trainer.student.exported_state())
    summary = _summary(config, history)
    run.finish(summary)
    say(_sentence(summary))
    return summary


class Trainer:
    """A student on its way: network, optimiser and schedule, epoch by epoch."""

    def __init__(
        self, config: TrainConfig, index: TargetIndex, labels: Labels | None, device: torch.device
    ) -> None:
        self._config, self._index, self._labels, self._device = config, index, labels, device
        torch.manual_seed(config.seed)
        source_classes = labels.n_classes if labels else {}
        self.student = build_student(config.model, len(index.classes), source_classes, config.transfer_module)
        self.student.to(device)
        self._optimiser = torch.optim.SGD(
            self.student.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self._schedule = torch.optim.lr_scheduler.MultiStepLR(
            self._optimiser, list(config.milestones), gamma=config.gamma
        )

    def epoch(self, epoch: int, renderer: Renderer, advance: Callable[[int], None]) -> dict[str, Any]:
        """Every training sample once; returns the epoch's figures. `advance` is told of each batch."""
        started = perf_counter()
        sums = _Sums()
        view = self._view_of(epoch)
        if self._labels:
            self._labels.load(view)
            sums.label_s = perf_counter() - started
        n, batch_size = len(self._index), self._config.batch_size
        batches = shuffled_batches(n, batch_size, seed=self._config.seed, epoch=epoch)
        self.student.train()
        with closing(renderer.render(view, batches)) as drawn:
            for positions in batches:
                waited = perf_counter()
                pixels = next(drawn).to(self._device, non_blocking=True)
                sums.data_s += perf_counter() - waited
                self._step(positions, pixels, sums, epoch)
                advance(len(positions))
        lr = float(self._schedule.get_last_lr()[0])
        self._schedule.step()
        return _metrics(epoch, view, lr, sums, perf_counter() - started)

    def state(self, epoch: int) -> dict[str, Any]:
        """What a checkpoint after `epoch` holds: plain data and tensors."""
        return {
            "epoch": epoch + 1,
            "config": asdict(self._config),
            "student": self.student.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "schedule": self._schedule.state_dict(),
        }

    def _view_of(self, epoch: int) -> int:
        if self._labels:
            return self._labels.view_of(epoch)
        return epoch if self._config.views is None else epoch % self._config.views

    def _step(self, positions: Positions, pixels: torch.Tensor, sums: _Sums, epoch: int) -> None:
        """One optimisation step; adds its figures to `sums`."""
        asked = perf_counter()
        source_logits = self._labels.logits(positions, pixels) if self._labels else {}
        sums.label_s += perf_counter() - asked
        truth = torch.from_numpy(self._index.labels[positions]).to(self._device)
        with autocast(self._device, self._config.amp):
            primary_logits, auxiliary_logits = self.student(normalise(pixels, IMAGENET_MEAN, IMAGENET_STD))
        primary = F.cross_entropy(primary_logits.float(), truth, reduction="mean")
        auxiliary = {
            name: auxiliary_loss(self._config, logits.float(), source_logits[name].float())
            for name, logits in auxiliary_logits.items()
        }
        loss = primary + self._config.alpha * sum(auxiliary.values(), start=torch.zeros_like(primary))
        if not torch.isfinite(loss):
            self._stop(loss.item(), positions, epoch)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        n = len(positions)
        sums.n += n
        sums.correct += int((primary_logits.argmax(dim=1) == truth).sum())
        sums.primary += primary.item() * n
        for name, value in auxiliary.items():
            sums.auxiliary[name] = sums.auxiliary.get(name, 0.0) + value.item() * n

    def _stop(self, loss: float, positions: Positions, epoch: int) -> None:
        ids = ", ".join(str(i) for i in self._index.ids[positions][:5])
        raise RunError(
            f"{self._config.target}: the loss is {loss} in epoch {epoch + 1} (samples {ids}, ...); "
            f"lower --lr or --alpha; the last whole epoch is kept in last.pt"
        )


def shuffled_batches(n: int, batch_size: int, *, seed: int, epoch: int) -> list[Positions]:
    """Every position 0..n-1 once, in an order that is a function of (seed, epoch), in even batches.

    There are ceil(n / batch_size) batches, whose sizes differ by at most one, so that the last is never a
    handful with batch statistics of its own.
    """
    order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(n)
    return np.array_split(order, -(-n // batch_size))


def auxiliary_loss(config: TrainConfig, logits: torch.Tensor, source_logits: torch.Tensor) -> torch.Tensor:
    """L_aux of one source head (SSKT eq. 2, 3): logits and source_logits float32 (N, K); a scalar."""
    if config.aux_loss == "ce":
        return soft_cross_entropy(logits, source_logits, temperature=config.temperature)
    return kd_divergence(logits, source_logits, temperature=config.temperature, reduction=config.kd_reduction)


def _metrics(epoch: int, view: int, lr: float, sums: _Sums, epoch_s: float) -> dict[str, Any]:
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
    last = history[-1]
    return {
        "target": config.target,
        "model": config.model,
        "method": config.method,
        "sources": list(config.sources),
        "labels": config.labels,
        "seed": config.seed,
        "epochs": len(history),
        "test_top1": last["test_top1"],
        "best_test_top1": max(m["test_top1"] for m in history if "test_top1" in m),
        "train_top1": last["train_top1"],
        "epoch_s": float(np.median([m["epoch_s"] for m in history])),
        "label_s": float(np.median([m["label_s"] for m in history])),
    }


def _sentence(summary: dict[str, Any]) -> str:
    return (
        f"{summary['epochs']} epochs: test top-1 {summary['test_top1']:.2f} % "
        f"(best {summary['best_test_top1']:.2f}), {summary['epoch_s']:.1f} s an epoch, "
        f"of which source logits {summary['label_s']:.2f} s"
    )


def _note(epoch: int, history: list[dict[str, Any]]) -> str:
    last = f", test {history[-1]['test_top1']:.1f} %" if history and "test_top1" in history[-1] else ""
    return f"epoch {epoch + 1}{last}"
