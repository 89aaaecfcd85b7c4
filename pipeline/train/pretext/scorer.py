"""Score an encoder on the videos that are held out, by its own task: always the same examples of each, which
no epoch trains on.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.data import PretextPlan, open_renderer
from pipeline.runtime import Execution, autocast, to_device
from pipeline.train.config import TrainConfig
from pipeline.train.summary import History
from pipeline.train.sums import Sums, to_host
from sskt.methods import Pretext
from sskt.students import Student

if TYPE_CHECKING:
    from pipeline.train.data import TrainingData

_VIEWS = tuple(range((1 << 32) - 4, 1 << 32))  # of each video: the last ones, which no epoch reaches


class PretextScorer:
    """See `pipeline.train.score.Scorer`. Every rank scores all videos, so that their batches do not depend on
    the number of ranks.
    """

    largest = 0.0  # of logits, which are not looked at

    def __init__(
        self, config: TrainConfig, method: Pretext, data: TrainingData, execution: Execution
    ) -> None:
        assert data.val_dataset is not None  # noqa: S101 - `open_pretext` looks
        self._config, self._method, self._data, self._execution = config, method, data, execution
        self._dataset = data.val_dataset
        n = len(self._dataset)
        # none smaller than in training: tracking compares the videos of a batch
        self._batches = np.array_split(np.arange(n), max(1, n // config.batch_size))
        self.best: dict[str, torch.Tensor] | None = None  # not yet written

    def look(self, student: Student, figures: dict[str, Any], history: History) -> dict[str, Any]:  # noqa: ARG002
        """An epoch's figures on the held-out videos: val_loss, val_top1, the percentage of right answers, and
        what the task records. The encoder is kept as `best` if its loss is the smallest so far.
        """
        sums = self._sums()
        found = {"val_loss": sums.total / sums.n, "val_top1": 100 * sums.correct / sums.n}
        found |= {f"val_{name}": value / sums.n for name, value in sums.recorded.items()}
        if found["val_loss"] < min((m["val_loss"] for m in history if "val_loss" in m), default=float("inf")):
            self.best = {name: value.detach().clone() for name, value in student.exported_state().items()}
        return found

    def test(self, student: Student, figures: dict[str, Any], history: History) -> dict[str, Any]:  # noqa: ARG002
        """Nothing: a pretext task never sees the test split."""
        return {}

    def summary(self, history: list[dict[str, Any]]) -> dict[str, Any]:
        """The content of summary.json."""
        config, last = self._config, history[-1]
        scored = [figures for figures in history if "val_loss" in figures]
        n = len(self._data.dataset)
        return {
            "target": config.target,
            "targets": [config.target, *config.unlabelled],
            "task": config.method,
            "model": config.model,
            "method": config.method,
            **({"plain_layers": list(config.plain_layers)} if config.plain_layers else {}),
            "seed": config.seed,
            "epochs": len(history),
            "iterations": len(history) * -(-n // config.batch_size),
            "overridden": {name: list(pair) for name, pair in config.overridden.items()},
            "n_videos": n,
            "n_held_out": len(self._dataset),
            "metric": "val_top1",
            "accuracy": last["val_top1"],
            "chance": self._method.chance,
            **{name: last[name] for name in last if name.startswith("val_")},
            "best_epoch": min(scored, key=lambda figures: figures["val_loss"])["epoch"],
            "train_top1": last["train_top1"],
            **{name: float(np.median([m[name] for m in history])) for name in ("epoch_s", "data_wait_share")},
        }

    def sentence(self, summary: dict[str, Any]) -> str:
        """What came out, in one line."""
        by_chance = "" if summary["chance"] is None else f" (by chance {summary['chance']:.1f} %)"
        recorded = "".join(
            f", {name.removeprefix('val_').replace('_', ' ')} {summary[name]:.4g}"
            for name in (f"val_{name}" for name in self._method.recorded_names)
        )
        return (
            f"{summary['task']}, {summary['epochs']} epochs of {summary['n_videos']:,} videos: "
            f"{summary['accuracy']:.2f} % of {len(_VIEWS)} examples of each of {summary['n_held_out']:,} "
            f"held-out videos are right{by_chance}{recorded}, {summary['epoch_s']:.1f} s an epoch"
        )

    def _sums(self) -> Sums:
        """Summed losses over every example."""
        config, device, plan, dataset = self._config, self._execution.device, self._data.plan, self._dataset
        assert isinstance(plan, PretextPlan)  # noqa: S101 - `open_pretext` made it
        self._method.eval()
        sums, names = Sums(), (self._method.auxiliary_names, self._method.recorded_names)
        largest = max(map(len, self._batches))
        with closing(open_renderer(dataset, plan, self._execution, batch_size=largest)) as renderer:
            for view in _VIEWS:
                for positions, pixels in zip(
                    self._batches, renderer.render(view, self._batches), strict=True
                ):
                    answers = plan.answers(view, dataset.ids[positions], dataset.sizes[positions])
                    inputs = to_device(pixels, device), to_device(answers, device)
                    with torch.inference_mode(), autocast(device, config.amp):
                        losses = self._method(*inputs, {})
                    (figures,) = to_host([losses])
                    sums.add(figures, len(positions), len(positions), names)
        return sums
