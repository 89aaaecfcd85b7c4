"""Train a student step by step: network, optimiser, schedule, and the state that a checkpoint needs.

The state between two steps is complete: a run that continues from it gives the same numbers as one that was
never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.data import Batch, Dataset, Loader, Mixing, Positions, sampler_for
from pipeline.runtime import Execution, World, autocast, peak_memory, reuse_freed_memory
from pipeline.source_outputs import SourceOutputs
from pipeline.train.compiled import compile_step, require_right
from pipeline.train.config import TrainConfig
from pipeline.train.divergence import diverged
from pipeline.train.sums import Sums, to_host
from sskt.kernels import compute_plainly
from sskt.methods import Losses, Method
from sskt.optimiser import build_optimizer, by_layer
from sskt.sanity import insane_weight
from sskt.schedules import Schedule
from sskt.students import BACKBONES, AveragedStudent, Student, layer_factors, to_channels_last

_CHECK_EVERY = 25  # steps between two checks of the losses, each of which waits for the GPU


class Trainer:
    """Trains one student. Every rank has one, and all take the same steps."""

    def __init__(
        self,
        config: TrainConfig,
        method: Method,
        dataset: Dataset,
        source_outputs: SourceOutputs | None,
        execution: Execution,
        world: World,
    ) -> None:
        """`method` is moved to the device."""
        self._config, self._dataset, self._world = config, dataset, world
        self._is_labelled = dataset.is_labelled
        self._source_outputs = source_outputs
        self._device = execution.device
        if self._device.type == "cpu":
            reuse_freed_memory()
        self.method = method.to(self._device)
        self.student = method.student
        if config.channels_last:
            to_channels_last(method)
        for name in config.plain_layers:
            compute_plainly(method.get_submodule(name))
        parallel = world.parallel(method, self._device, may_have_unused=config.model not in BACKBONES)
        self._losses: Callable[..., Losses] = parallel
        if config.compiled:
            self._losses = compile_step(parallel, self._device, alone=world.size == 1)
        self._untried = parallel if config.compiled else None  # to check the compiled step against, once
        self._optimiser = build_optimizer(
            config.optimizer,
            _with_layer_decay(method, config),
            lr=config.lr,
            momentum=config.momentum,
            dampening=config.dampening,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
            decay_norms=config.decay_norms,
            # fused, torch's SGD keeps a momentum that it never filled if the scaler skips its first step
            fused=config.amp != "fp16",
        )
        order = sampler_for(dataset, config.batch_size, config.seed, world, config.labelled_share)
        self._schedule = Schedule(
            self._optimiser,
            config.schedule,
            epochs=config.epochs,
            milestones=config.milestones,
            gamma=config.gamma,
            patience=config.patience,
            steps=config.epochs * order.n_steps,
            warm_up=config.warm_up,
            cool_down=config.cool_down,
        )
        self._average = (
            AveragedStudent(self.student, config.ema, matched=config.ema_matched) if config.ema else None
        )
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=config.amp == "fp16")
        method.scaled = self._scaler.scale
        self._mixing = Mixing(config.mixup, config.cutmix)
        self._names = method.auxiliary_names, method.recorded_names
        self._unchecked: list[tuple[int, Positions, Losses]] = []  # step and samples of each
        self.epoch, self.step, self.sums = 0, 0, Sums()

    @property
    def scored(self) -> Student:
        """The student to evaluate and export: its averaged weights if the run keeps an average."""
        return self._average.module if self._average else self.student

    def train_epoch(
        self, loader: Loader, advance: Callable[[int], None], between_steps: Callable[[], None]
    ) -> dict[str, Any]:
        """Train on every sample once, starting at the current step; returns the epoch's figures.

        `advance` is called with each step's number of samples, `between_steps` whenever `state` may be taken.
        """
        started, before = perf_counter(), self.sums.wall_s
        view = self._view_of(self.epoch)
        self._load_labels(loader, view)
        self.method.train()
        self.method.progress = self.epoch / self._config.epochs
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
        self._world.sync_buffers(self.method)
        if self._average:
            self._world.sync_buffers(self.scored)
        if self._source_outputs:
            self._source_outputs.finish()
        self.sums.wall_s = before + perf_counter() - started
        return self._figures(view)

    def require_sane(self) -> None:
        """Raise DivergedError if a loss so far is not finite, or a weight or batch-norm average is
        implausibly large (`sskt.sanity`).
        """
        self._check()
        averages = [name for name, _ in self.method.named_buffers()]
        if found := insane_weight(self.method.state_dict(), averages):
            name, value = found
            self._stop(
                f"the largest value of {name} is {value:.4g}", f"after step {self.step}", self.step, []
            )

    def end_epoch(self, test_loss: float | None) -> None:
        """Advance the schedule and start the next epoch."""
        self._schedule.end_epoch(test_loss)
        self.epoch, self.step, self.sums = self.epoch + 1, 0, Sums()

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on: plain data and tensors, the same on every rank.

        Raises DivergedError as `require_sane` does, so that no broken state is saved.
        """
        self.require_sane()
        mine = {
            "sums": asdict(self.sums),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None,
        }
        return {
            "epoch": self.epoch,
            "step": self.step,
            "method": self.method.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
            **({"average": self._average.state_dict()} if self._average else {}),
            "ranks": self._world.all_gather(mine),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.epoch, self.step = state["epoch"], state["step"]
        self.method.load_state_dict(state["method"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])
        self._scaler.load_state_dict(state["scaler"])
        if self._average:
            self._average.load_state_dict(state["average"])
        mine = state["ranks"][self._world.rank]
        # all samples had a label before those with one were counted
        self.sums = Sums(**{"labelled": mine["sums"]["n"], **mine["sums"]})
        torch.set_rng_state(mine["rng"].cpu())
        if mine["cuda_rng"] is not None:
            torch.cuda.set_rng_state(mine["cuda_rng"].cpu(), self._device)

    def _view_of(self, epoch: int) -> int:
        views = self._source_outputs.views if self._source_outputs else self._config.views
        return epoch if views is None else epoch % views

    def _load_labels(self, loader: Loader, view: int) -> None:
        """Load the source outputs of this epoch, and start reading the next one's."""
        if self._source_outputs is None:
            return
        asked = perf_counter()
        self._source_outputs.load(view, loader.order.positions(self.epoch))
        self.sums.label_s += perf_counter() - asked
        if self.epoch + 1 < self._config.epochs:
            self._source_outputs.prepare(
                self._view_of(self.epoch + 1), loader.order.positions(self.epoch + 1)
            )

    def _take_step(self, batch: Batch) -> None:
        """One optimisation step."""
        pixels, mixed, mixed_sources = batch.pixels, None, None
        shown = pixels
        if self._mixing:
            pixels, mixed = self._mixing(pixels, seed=self._config.seed, epoch=self.epoch, step=batch.step)
            if self._source_outputs and self._source_outputs.sees_mixtures:
                shown = pixels
            else:
                mixed_sources = mixed
        asked = perf_counter()
        source_logits = self._source_outputs.logits(batch.positions, shown) if self._source_outputs else {}
        self.sums.label_s += perf_counter() - asked
        inputs = (pixels, batch.labels, source_logits, mixed, mixed_sources)
        if self._untried is not None:
            require_right(self._losses, self._untried, self.method, inputs, self._config, self._device)
            self._untried = None
        self.method.rate = self._schedule.lr
        self._optimiser.zero_grad(set_to_none=True)  # first: a CUDA graph reuses the memory of gradients
        with autocast(self._device, self._config.amp):
            losses = self._losses(*inputs)
        # the ranks' gradients are averaged, as if their parts of the batch were equally large
        weight = self._world.weight(len(batch.positions), batch.n_step)
        self._scaler.scale(losses.total * weight if weight != 1 else losses.total).backward()  # type: ignore[no-untyped-call]
        if self._config.clip_norm is not None:
            self._scaler.unscale_(self._optimiser)
            nn.utils.clip_grad_norm_(self.method.parameters(), self._config.clip_norm)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self._schedule.end_step()
        if self._average:
            self._average.update_parameters(self.student)
        self._unchecked.append((batch.step, batch.positions, losses._replace(total=losses.total.detach())))
        if self._device.type == "cpu" or len(self._unchecked) == _CHECK_EVERY:
            self._check()

    def _check(self) -> None:
        """Add up the losses since the last look. Raises DivergedError, naming the step and its samples, if
        one of them is not finite.
        """
        if self._source_outputs:
            self._source_outputs.check()  # first: a loss that is not finite would be blamed on the student
        unchecked, self._unchecked = self._unchecked, []
        figures = to_host([losses for *_, losses in unchecked])
        for (step, positions, _), found in zip(unchecked, figures, strict=True):
            if not math.isfinite(found.total):
                ids = self._dataset.ids[positions].tolist()
                some = ", ".join(map(str, ids[:5]))
                where = f"step {step + 1} (samples {some}, ...)"
                self._stop(f"the loss is {found.total}", where, step + 1, ids)
            labelled = int(self._is_labelled[positions].sum())
            self.sums.add(found, len(positions), labelled, self._names)

    def _stop(self, what: str, where: str, step: int, ids: list[int]) -> None:
        """Raise DivergedError for the current epoch."""
        raise diverged(self._config, what, where, epoch=self.epoch + 1, step=step, ids=ids)

    def _figures(self, view: int) -> dict[str, Any]:
        """One line of metrics.jsonl: the epoch over all ranks; its seconds are those of this rank."""
        return {
            "epoch": self.epoch + 1,
            "view": view,
            "lr": self._schedule.lr,
            **self.sums.means(self._names, self._world, self._device),
            **peak_memory(self._device),
        }


def _with_layer_decay(method: Method, config: TrainConfig) -> list[dict[str, Any]]:
    """The method's parameter groups; with rates by layer in the backbones of all its students."""
    groups = method.parameter_groups()
    if config.layer_decay == 1:
        return groups
    factors: dict[Tensor, float] = {}
    for student in method.modules():
        if isinstance(student, Student):
            backbone = student.backbone
            factors |= layer_factors(backbone.layers(), backbone, config.layer_decay)
    return by_layer(groups, factors, config.lr)
