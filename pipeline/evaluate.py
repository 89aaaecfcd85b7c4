"""How good a student is: top-1, top-5 and loss over the evaluation view of a split, without source heads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from pipeline.execution import Execution, memory_for_pictures
from pipeline.plan import Plan
from pipeline.precision import autocast
from pipeline.ranks import Ranks
from pipeline.render import in_batches
from pipeline.targets.index import TargetIndex
from sskt.frozen import IMAGENET_MEAN, IMAGENET_STD, normalise
from sskt.metrics import per_class_accuracy, topk_correct
from sskt.student import Student

_BATCH = 250


class Evaluator:
    """Scores students on one split; its pixels are drawn once and kept where there is room for them."""

    def __init__(
        self, index: TargetIndex, plan: Plan, execution: Execution, ranks: Ranks | None = None
    ) -> None:
        """`ranks` share the samples (left out: this process sees all)."""
        self._index, self._plan, self._execution = index, plan, execution
        self._ranks = ranks or Ranks()
        every = np.arange(len(index))
        self._positions = every[self._ranks.share(len(every))]
        nbytes = 3 * plan.side_px**2 * len(self._positions)
        self._keeps = nbytes <= memory_for_pictures() // 4
        self._kept: list[torch.Tensor] = []

    def accuracy(self, student: Student, amp: str) -> dict[str, float]:
        """test_top1 and test_top5 in percent (top-5 only with more than five classes), and the mean
        cross-entropy test_loss; over all ranks.
        """
        logits = self.predict(student, amp)
        truth = torch.from_numpy(self._index.labels[self._positions])
        ks = (1, 5) if len(self._index.classes) > 5 else (1,)
        sums = [float(F.cross_entropy(logits, truth, reduction="sum"))] if len(truth) else [0.0]
        sums += [topk_correct(logits, truth, k=k) for k in ks]
        summed = self._ranks.total(
            torch.tensor(sums, dtype=torch.float64, device=self._execution.device)
        ).tolist()
        n = len(self._index)
        tops = {f"test_top{k}": 100 * right / n for k, right in zip(ks, summed[1:], strict=True)}
        return {**tops, "test_loss": summed[0] / n}

    def report(self, student: Student, amp: str) -> dict[str, Any]:
        """`accuracy`, and each class's top-1 in percent (None for a class without samples). One process."""
        index = self._index
        figures = self.accuracy(student, amp)
        truth = torch.from_numpy(index.labels)
        by_class = per_class_accuracy(self.predict(student, amp), truth, n_classes=len(index.classes))
        return {
            "target": index.target,
            "split": index.split,
            "n_samples": len(index),
            **figures,
            "class_top1": {
                name: None if bool(torch.isnan(value)) else 100 * float(value)
                for name, value in zip(index.classes, by_class, strict=True)
            },
        }

    def predict(self, student: Student, amp: str) -> torch.Tensor:
        """Primary logits of this rank's samples, in index order: float32 (n, classes) on the CPU."""
        student.eval()
        device = self._execution.device
        logits = []
        for pixels in self._pixels():
            with torch.inference_mode(), autocast(device, amp):
                z = student.predict(normalise(pixels.to(device), IMAGENET_MEAN, IMAGENET_STD))
            logits.append(z.float().cpu())
        return torch.cat(logits) if logits else torch.empty(0, len(self._index.classes))

    def _pixels(self) -> Iterator[torch.Tensor]:
        if self._kept:
            yield from self._kept
            return
        drawn: list[torch.Tensor] = []
        renderer = self._execution.open_renderer(self._index, self._plan, batch_size=_BATCH)
        with closing(renderer):
            for pixels in renderer.render(0, in_batches(self._positions, _BATCH)):
                if self._keeps:
                    drawn.append(pixels)
                yield pixels
        self._kept = drawn
