"""How good a student is: top-1 and top-5 over the evaluation view of a split, its source heads left aside."""

from __future__ import annotations

from contextlib import closing, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from pipeline.execution import Execution
from pipeline.plan import Plan
from pipeline.render import in_batches
from pipeline.targets.index import TargetIndex
from sskt.frozen import IMAGENET_MEAN, IMAGENET_STD, normalise
from sskt.metrics import per_class_accuracy, topk_correct
from sskt.student import Student

_BATCH = 250


def accuracy(
    student: Student, index: TargetIndex, plan: Plan, execution: Execution, amp: str
) -> dict[str, float]:
    """test_top1 and test_top5 in percent (top-5 only with more than five classes)."""
    return _top_k(predict(student, index, plan, execution, amp), index)


def report(
    student: Student, index: TargetIndex, plan: Plan, execution: Execution, amp: str
) -> dict[str, Any]:
    """`accuracy`, the mean cross-entropy, and each class's top-1 in percent (None for a class without
    samples).
    """
    logits, truth = predict(student, index, plan, execution, amp), torch.from_numpy(index.labels)
    by_class = per_class_accuracy(logits, truth, n_classes=len(index.classes))
    return {
        "target": index.target,
        "split": index.split,
        "n_samples": len(index),
        **_top_k(logits, index),
        "test_loss": float(F.cross_entropy(logits, truth, reduction="mean")),
        "class_top1": {
            name: None if bool(torch.isnan(value)) else 100 * float(value)
            for name, value in zip(index.classes, by_class, strict=True)
        },
    }


def predict(student: Student, index: TargetIndex, plan: Plan, execution: Execution, amp: str) -> torch.Tensor:
    """Primary logits of every sample, in index order: float32 (N, classes) on the CPU."""
    student.eval()
    positions: NDArray[np.int64] = np.arange(len(index))
    renderer = execution.open_renderer(index, plan, batch_size=_BATCH)
    with closing(renderer), torch.inference_mode(), autocast(execution.device, amp):
        batches = renderer.render(0, in_batches(positions, _BATCH))
        logits = [
            student.predict(normalise(pixels.to(execution.device), IMAGENET_MEAN, IMAGENET_STD)).float().cpu()
            for pixels in batches
        ]
    return torch.cat(logits)


def autocast(device: torch.device, amp: str) -> torch.autocast | nullcontext[None]:
    """The precision of a student's forward pass: plain fp32, or autocast to bf16."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if amp == "bf16" else nullcontext()


def _top_k(logits: torch.Tensor, index: TargetIndex) -> dict[str, float]:
    truth = torch.from_numpy(index.labels)
    ks = (1, 5) if len(index.classes) > 5 else (1,)
    return {f"test_top{k}": 100 * topk_correct(logits, truth, k=k) / len(index) for k in ks}
