"""A student on its way: network, optimiser and schedule, step by step, and all that a checkpoint needs.

The state between two steps is complete: a run that goes on from it gives the numbers of one that never
stopped.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import nn

from pipeline.execution import Execution
from pipeline.labels import Labels
from pipeline.loader import Batch, Loader
from pipeline.mixing import Mixing
from pipeline.precision import autocast
from pipeline.ranks import Ranks
from pipeline.render import Positions
from pipeline.targets.index import TargetIndex
from pipeline.training.config import TrainConfig
from sskt.backbones import Backbone
from sskt.errors import RunError
from sskt.objective import Losses, Objective
from sskt.schedules import Schedule
from sskt.student import Student, memory_layout

# None on Windows
resource: Any = importlib.import_module("resource") if importlib.util.find_spec("resource") else None

_CHECK_EVERY = 25  # steps between two looks at the losses, each of which waits for a GPU


class DivergedError(RunError):
    """A loss or a weight is no number any more."""


@dataclass(slots=True)
class Sums:
    """What an epoch adds up over its samples on this rank, and the seconds that the user waited."""

    n: int = 0
    correct: int = 0
    primary: float = 0.0
    auxiliary: dict[str, float] = field(default_factory=dict)
    data_s: float = 0.0  # for pixels
    label_s: float = 0.0  # for source logits
    wall_s: float = 0.0


class Trainer:
    """One student. Every rank has one, and they take the same steps."""

    def __init__(
        self,
        config: TrainConfig,
        backbone: Backbone,
        index: TargetIndex,
        labels: Labels | None,
        execution: Execution,
        ranks: Ranks,
    ) -> None:
        """`backbone` was made from `config.seed`; the heads' weights follow it."""
        self._config, self._index, self._labels, self._ranks = config, index, labels, ranks
        self._device = execution.device
        n_sources = labels.n_classes if labels else {}
        self.student = Student(backbone, len(index.classes), n_sources, config.transfer_module)
        if config.freeze_until is not None:
            self.student.freeze_until(config.freeze_until)
        self.student.to(self._device)
        if config.channels_last:
            self.student.to(memory_format=memory_layout(self.student))
        objective: nn.Module = Objective(
            self.student,
            alpha=config.alpha,
            temperature=config.temperature,
            aux_loss=config.aux_loss,
            kd_reduction=config.kd_reduction,
            primary_loss=config.primary_loss,
            label_smoothing=config.label_smoothing,
            channels_last=config.channels_last,
        )
        objective = ranks.parallel(objective, self._device)
        self._objective: Callable[..., Losses] = torch.compile(objective) if config.compiled else objective
        self._optimiser = torch.optim.SGD(
            [weight for weight in self.student.parameters() if weight.requires_grad],
            lr=config.lr,
            momentum=config.momentum,
            dampening=config.dampening,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._schedule = Schedule(
            self._optimiser,
            config.schedule,
            epochs=config.epochs,
            milestones=config.milestones,
            gamma=config.gamma,
        )
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=config.amp == "fp16")
        self._mixing = Mixing(config.mixup, config.cutmix)
        self._unchecked: list[tuple[int, Positions, Losses]] = []  # step and samples of each
        self.epoch, self.step, self.sums = 0, 0, Sums()

    def train_epoch(
        self, loader: Loader, advance: Callable[[int], None], between_steps: Callable[[], None]
    ) -> dict[str, Any]:
        """Every training sample once, from the step that the state is at; returns the epoch's figures.

        `advance` is told of each step's samples. `between_steps` is called where `state` may be taken.
        """
        started, before = perf_counter(), self.sums.wall_s
        view = self._view_of(self.epoch)
        self._load_labels(loader, view)
        self.student.train()
        asked = perf_counter()
        for batch in loader.epoch(self.epoch, view, first_step=self.step):
            self.sums.data_s += perf_counter() - asked
            self._take_step(batch)
            self.step = batch.step + 1
            self.sums.wall_s = before + perf_counter() - started
            advance(batch.n_step)
            between_steps()
            asked = perf_counter()
        self._check()
        self._ranks.align(self.student)
        if self._labels:
            self._labels.finish()
        self.sums.wall_s = before + perf_counter() - started
        return self._figures(view)

    def end_epoch(self, test_loss: float | None) -> None:
        """Move the schedule, and begin the next epoch."""
        self._schedule.step(test_loss)
        self.epoch, self.step, self.sums = self.epoch + 1, 0, Sums()

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on: plain data and tensors, the same on every rank.

        Raises DivergedError if the student's weights are no numbers any more, so that no such state is kept.
        """
        self._check()
        for name, weight in self.student.named_parameters():
            if not bool(torch.isfinite(weight).all()):
                self._stop(f"the weights {name} are not finite", f"after step {self.step}")
        mine = {
            "sums": asdict(self.sums),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None,
        }
        return {
            "epoch": self.epoch,
            "step": self.step,
            "student": self.student.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
            "ranks": self._ranks.gathered(mine),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.epoch, self.step = state["epoch"], state["step"]
        self.student.load_state_dict(state["student"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])
        self._scaler.load_state_dict(state["scaler"])
        mine = state["ranks"][self._ranks.rank]
        self.sums = Sums(**mine["sums"])
        torch.set_rng_state(mine["rng"].cpu())
        if mine["cuda_rng"] is not None:
            torch.cuda.set_rng_state(mine["cuda_rng"].cpu(), self._device)

    def _view_of(self, epoch: int) -> int:
        views = self._labels.views if self._labels else self._config.views
        return epoch if views is None else epoch % views

    def _load_labels(self, loader: Loader, view: int) -> None:
        """The rows of this epoch; the next one's are read while it trains."""
        if self._labels is None:
            return
        asked = perf_counter()
        self._labels.load(view, loader.order.rows(self.epoch))
        self.sums.label_s += perf_counter() - asked
        if self.epoch + 1 < self._config.epochs:
            self._labels.prepare(self._view_of(self.epoch + 1), loader.order.rows(self.epoch + 1))

    def _take_step(self, batch: Batch) -> None:
        """One optimisation step."""
        pixels, mixed, mixed_sources = batch.pixels, None, None
        shown = pixels
        if self._mixing:
            pixels, mixed = self._mixing(pixels, seed=self._config.seed, epoch=self.epoch, step=batch.step)
            if self._labels and self._labels.sees_mixtures:
                shown = pixels
            else:
                mixed_sources = mixed
        asked = perf_counter()
        source_logits = self._labels.logits(batch.positions, shown) if self._labels else {}
        self.sums.label_s += perf_counter() - asked
        with autocast(self._device, self._config.amp):
            losses = self._objective(pixels, batch.labels, source_logits, mixed, mixed_sources)
        # the ranks' gradients are averaged, as if their parts of the batch were equally large
        weight = self._ranks.weight(len(batch.positions), batch.n_step)
        self._optimiser.zero_grad(set_to_none=True)
        self._scaler.scale(losses.total * weight if weight != 1 else losses.total).backward()  # type: ignore[no-untyped-call]
        if self._config.clip_norm is not None:
            self._scaler.unscale_(self._optimiser)
            nn.utils.clip_grad_norm_(self.student.parameters(), self._config.clip_norm)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self._unchecked.append((batch.step, batch.positions, losses._replace(total=losses.total.detach())))
        if self._device.type == "cpu" or len(self._unchecked) == _CHECK_EVERY:
            self._check()

    def _check(self) -> None:
        """Add up the losses since the last look. Raises DivergedError, naming the step and its samples, if
        one of them is not finite.
        """
        unchecked, self._unchecked = self._unchecked, []
        if not unchecked:
            return
        rows = [torch.cat([each.total[None], each.primary[None], each.auxiliary]) for *_, each in unchecked]
        hits = torch.stack([each.correct for *_, each in unchecked]).tolist()
        for (step, positions, _), (total, primary, *auxiliary), correct in zip(
            unchecked, torch.stack(rows).double().tolist(), hits, strict=True
        ):
            if not math.isfinite(total):
                ids = ", ".join(str(i) for i in self._index.ids[positions][:5])
                self._stop(f"the loss is {total}", f"step {step + 1} (samples {ids}, ...)")
            n = len(positions)
            self.sums.n += n
            self.sums.correct += correct
            self.sums.primary += primary * n
            for name, value in zip(self.student.source_names, auxiliary, strict=True):
                self.sums.auxiliary[name] = self.sums.auxiliary.get(name, 0.0) + value * n

    def _stop(self, what: str, where: str) -> None:
        """There is no going on from here."""
        raise DivergedError(
            f"{self._config.target}: {what} in epoch {self.epoch + 1}, {where}; lower --lr or --alpha, "
            f"or add --clip-norm"
        )

    def _figures(self, view: int) -> dict[str, Any]:
        """One line of metrics.jsonl: the epoch over all ranks; its seconds are those of this rank."""
        names = self.student.source_names
        sums = self.sums
        parts = [sums.n, sums.correct, sums.primary, *(sums.auxiliary[name] for name in names)]
        summed = self._ranks.total(torch.tensor(parts, dtype=torch.float64, device=self._device))
        n, correct, primary, *auxiliary = summed.tolist()
        means = {f"aux_loss/{name}": value / n for name, value in zip(names, auxiliary, strict=True)}
        return {
            "epoch": self.epoch + 1,
            "view": view,
            "lr": self._schedule.lr,
            "train_loss": (primary + self._config.alpha * sum(auxiliary)) / n,
            "primary_loss": primary / n,
            **means,
            "train_top1": 100 * correct / n,
            "epoch_s": sums.wall_s,
            "label_s": sums.label_s,
            "data_wait_s": sums.data_s,
            "data_wait_share": sums.data_s / sums.wall_s,
            "images_s": n / sums.wall_s,
            "peak_memory_mb": peak_memory_mb(),
            **({"peak_cuda_mb": _peak_cuda_mb(self._device)} if self._device.type == "cuda" else {}),
        }


def peak_memory_mb() -> float | None:
    """The most memory that this process has held, in MB; None on Windows."""
    if resource is None:
        return None
    peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def _peak_cuda_mb(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / 1e6
