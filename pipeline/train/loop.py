"""Stage two: train a target network on its own labels and, through one auxiliary head per source, on what the
sources said.

L = L_prim + alpha * sum_m L_aux(m) (SSKT eq. 1, 5, 7). Pixels come from the plan's view of the epoch, source
logits from `SourceOutputs` by sample. A run may be stopped at any time; it continues from its last checkpoint
to the same numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from time import monotonic
from typing import Any

import torch

from pipeline.data import Loader, PretextPlan, Sampler, open_renderer, sampler_for
from pipeline.runtime import CpuContention, Execution, Progress, World
from pipeline.train.config import TrainConfig
from pipeline.train.data import TrainingData
from pipeline.train.divergence import DivergedError, diverged
from pipeline.train.evaluate import InsaneLogitsError
from pipeline.train.example_images import example_images, spread
from pipeline.train.pretext.scorer import PretextScorer
from pipeline.train.run_folder import Run
from pipeline.train.score import Scorer
from pipeline.train.trainer import Trainer
from sskt.errors import RunError
from sskt.methods import PRETEXT_METHODS, Method, Pretext
from sskt.sanity import LARGEST_LOGIT

log = logging.getLogger(__name__)

_SAVE_EVERY_S = 60.0  # within an epoch: the most that a kill can cost
_SAVING_SHARE = 0.02  # largest fraction of the time spent on saving after shorter epochs
_SHOWN = 16  # training images in TensorBoard
_ASK_EVERY = 50  # steps between two queries of the first rank's clock
_NOT_DETERMINISTIC = "does not have a deterministic implementation"  # in torch's message


def run_epochs(
    config: TrainConfig,
    method: Method,
    data: TrainingData,
    *,
    execution: Execution,
    world: World,
    run: Run | None,
    state: dict[str, Any] | None,
) -> dict[str, Any]:
    """Train, log every epoch, export the student; returns the summary that is also written to the run.

    `run` is None on all ranks but the first, and closed at the end. `state` is what an earlier call left in
    last.pt. Raises DivergedError, naming step and samples, when a loss or weight is not finite; the last
    good state stays.
    """
    with closing(run) if run else nullcontext(), kernels(config, execution.device):
        if run is not None and state is None and not isinstance(data.plan, PretextPlan):
            images = example_images(data.dataset, data.plan, spread(data.dataset, _SHOWN), execution)
            run.log_images("training images, view 0", torch.from_numpy(images))
        trainer = Trainer(config, method, data.dataset, data.source_outputs, execution, world)
        course = _Course(config, trainer, data, execution, world, run)
        if state is not None:
            course.load_state(state)
        try:
            course.go()
        except KeyboardInterrupt:
            if run is not None:
                command = "pretext" if config.method in PRETEXT_METHODS else "train"
                log.info(f"{course.saved}; `sskt {command} --resume {run.path}` continues from there")
            raise
        except DivergedError as error:
            saved = course.saved
            if run is not None:
                name = run.save_divergence(error.found)
                saved += f", {name} {'every sample concerned' if error.found['ids'] else 'what was found'}"
            raise DivergedError(f"{error}; {saved}", error.found) from None
        summary = course.scorer.summary(course.history) | course.per_step
        if run is not None:
            run.save_student(trainer.scored.exported_state(), method.exports)
            run.finish(summary)
    log.info(course.scorer.sentence(summary))
    return summary


class _Course:
    """Runs the epochs, records them and saves checkpoints."""

    def __init__(
        self,
        config: TrainConfig,
        trainer: Trainer,
        data: TrainingData,
        execution: Execution,
        world: World,
        run: Run | None,
    ) -> None:
        self._config, self._trainer, self._data, self._execution = config, trainer, data, execution
        self._world, self._run = world, run
        self.scorer: Scorer | PretextScorer
        if isinstance(trainer.method, Pretext):
            self.scorer = PretextScorer(config, trainer.method, data, execution)
        else:
            self.scorer = Scorer(config, data, execution, world, run)
        self._saved_at, self._saving_s = monotonic(), 0.0
        self._by: dict[str, str] = {}  # what renders and computes
        alone_on_cpu = execution.device.type == "cpu" and world.size == 1
        self._neighbours = CpuContention() if alone_on_cpu else None  # None: not monitored (any longer)
        self.saved = "nothing was saved yet"  # for messages
        self.per_step: dict[str, float] = {}  # samples with and without labels, if some have none
        self.history: list[dict[str, Any]] = []

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what was saved."""
        self.history = list(state["history"])
        self._by = state.get("by", {})
        self._trainer.load_state(state)
        self._note_saved()

    def go(self) -> None:
        """Run the remaining epochs."""
        config, trainer, dataset = self._config, self._trainer, self._data.dataset
        order = sampler_for(dataset, config.batch_size, config.seed, self._world, config.labelled_share)
        trainer.method.labelled_share = order.labelled_fraction
        share = -(-config.batch_size // self._world.size)
        renderer = open_renderer(dataset, self._data.plan, self._execution, batch_size=share)
        if order.labelled is not None:
            self.per_step = _per_step(order)
            labelled, unlabelled = self.per_step.values()
            log.info(
                f"a step has {labelled:.1f} labelled and {unlabelled:.1f} unlabelled samples on average, of "
                f"{len(order.labelled):,} and {order.n - len(order.labelled):,}"
            )
        done = trainer.epoch * len(dataset) + sum(order.size_of(step) for step in range(trainer.step))
        plan = self._data.plan
        task = plan if isinstance(plan, PretextPlan) else None
        loader = Loader(dataset, renderer, order, self._execution.device, task)
        self._compare_with_before(renderer.name)
        bar = Progress(f"train {config.target}", total=config.epochs * len(dataset), done=done)
        with closing(renderer), bar if self._run else nullcontext():
            while trainer.epoch < config.epochs:
                advance = partial(bar.advance, note=self._note())
                figures = trainer.train_epoch(loader, advance, self._between_steps)
                self._end_epoch(figures)

    def _compare_with_before(self, renderer: str) -> None:
        """Warn if the renderer or the number of threads changed since the checkpoint, which changes last
        bits.
        """
        before, self._by = self._by, {"renderer": renderer}
        if self._execution.device.type == "cpu":
            self._by["number of threads"] = str(torch.get_num_threads())
        for name, now in self._by.items():
            if before.get(name, now) != now:
                log.warning(
                    f"the {name} is {now} and was {before[name]}: from here on the figures are not, to the "
                    f"last bit, those of a run without a stop"
                )

    def _end_epoch(self, figures: dict[str, Any]) -> None:
        """Evaluate on the split that chooses, log, and save if it is time to; after the last epoch, test."""
        config, trainer = self._config, self._trainer
        last = trainer.epoch + 1 == config.epochs
        if last or (trainer.epoch + 1) % config.eval_every == 0:
            figures |= self._scored(figures, last=last)
        self.history.append(figures)
        if self._run is not None:
            self._run.log_epoch(figures)
        self._mention_neighbours()
        trainer.end_epoch(figures.get(f"{config.chosen_on}_loss"))
        if last or self._is_due(self._saving_s / _SAVING_SHARE):
            self._save()

    def _scored(self, figures: dict[str, Any], *, last: bool) -> dict[str, Any]:
        """An epoch's figures on the split that chooses, and after the last one on the test split. Raises
        DivergedError if the student's weights or logits are implausible.
        """
        trainer = self._trainer
        trainer.require_sane()
        try:
            found = self.scorer.look(trainer.scored, figures, self.history)
            if last:
                found |= self.scorer.test(trainer.scored, figures | found, self.history)
                if self.scorer.largest > LARGEST_LOGIT:
                    log.warning(
                        f"the student's answers went up to {self.scorer.largest:.2g} while its batch norms "
                        f"had averaged few batches; train for more epochs before its accuracy means anything"
                    )
        except InsaneLogitsError as error:
            where = f"after step {trainer.step}"
            raise diverged(
                self._config, str(error), where, epoch=trainer.epoch + 1, step=trainer.step, ids=error.ids
            ) from error
        return found

    def _mention_neighbours(self) -> None:
        """Warn once that other processes compete for the CPU."""
        remark = self._neighbours and self._neighbours.remark()
        if remark:
            log.warning(remark)
            self._neighbours = None

    def _between_steps(self) -> None:
        alone = self._world.size == 1
        if (alone or self._trainer.step % _ASK_EVERY == 0) and self._is_due(_SAVE_EVERY_S):
            self._save()

    def _is_due(self, after_s: float) -> bool:
        return bool(self._world.broadcast(monotonic() - self._saved_at >= after_s))

    def _save(self) -> None:
        """Save the best student, then the checkpoint, which must never refer to a best student that is
        missing.
        """
        started, state = monotonic(), self._trainer.state()
        if self._run is not None:
            if self.scorer.best is not None:
                self._run.save_student(self.scorer.best, "best")
            self._run.save_checkpoint(
                {**state, "history": self.history, "by": self._by, "config": self._config.to_dict()}
            )
        self.scorer.best = None
        self._saved_at = monotonic()
        self._saving_s = self._saved_at - started
        self._note_saved()

    def _note_saved(self) -> None:
        epoch, step = self._trainer.epoch, self._trainer.step
        self.saved = f"last.pt holds the state after {epoch} epoch(s)" + (
            f" and {step} steps" if step else ""
        )

    def _note(self) -> str:
        watched = self._config.watched
        seen = [m[watched] for m in self.history if watched in m]
        now = f"epoch {self._trainer.epoch + 1}"
        return f"{now}, {self._config.chosen_on} {seen[-1]:.1f} %" if seen else now


def _per_step(order: Sampler) -> dict[str, float]:
    """Mean number of samples per step, with and without labels."""
    labelled = float(order.labelled_per_step().mean())
    return {"labelled_per_step": labelled, "unlabelled_per_step": order.n / order.n_steps - labelled}


@contextmanager
def kernels(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Within this context use deterministic kernels only or, on CUDA, the fastest ones. Raises RunError where
    torch has no deterministic kernel.
    """
    before = torch.are_deterministic_algorithms_enabled()
    on_cuda = device.type == "cuda"
    torch.use_deterministic_algorithms(config.deterministic)
    flags = torch.backends.cudnn.flags(
        enabled=True,
        benchmark=not config.deterministic,
        deterministic=config.deterministic,
        allow_tf32=False,  # fp32 shall mean fp32
    )
    try:
        with flags if on_cuda else nullcontext():
            yield
    except RuntimeError as error:
        if _NOT_DETERMINISTIC not in str(error):
            raise
        raise RunError(
            f"--deterministic: torch {torch.__version__} cannot train {config.model} so on {device} "
            f"({str(error).split(',')[0]}); leave it out, or use another --model or a later torch"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before)
