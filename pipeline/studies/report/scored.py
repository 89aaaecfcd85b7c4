"""A finished run's student on its test split, for a page: confusions, classes, and the mistakes it is surest
of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data import Dataset, Plan
from pipeline.runtime import Execution, lettering
from pipeline.studies.report.figures import image_uri, svg_uri
from pipeline.studies.report.mistakes import mistakes, multilabel_mistakes
from pipeline.train import Evaluator, draw_confusion, example_images
from sskt.errors import shown
from sskt.metrics import class_precisions, confusion_matrix
from sskt.students import Student

MISTAKES, PAIRS = 12, 10
_DRAWN = 60  # classes; with more, the picture of a confusion matrix shows nothing


def score(dataset: Dataset, student: Student, plan: Plan, amp: str, execution: Execution) -> dict[str, Any]:
    """Everything that a page shows of a test split, as plain data and data URIs. Raises InsaneLogitsError."""
    scores, probabilities = Evaluator(dataset, plan, execution).classify(student, amp)
    shares, classes = probabilities.numpy(), tuple(map(shown, dataset.classes))
    if dataset.multi_hot is None:
        wrong = mistakes(scores.numpy(), shares, dataset.labels)
        of_classes = _of_one_label(scores, dataset, classes)
    else:
        wrong = multilabel_mistakes(shares, dataset.multi_hot)
        of_classes = _of_several_labels(scores.numpy(), dataset.multi_hot, classes)
    of_classes["classes"].sort(key=lambda each: (each["value"] is None, each["value"]))
    rows = np.array([row for row, _, _ in wrong[:MISTAKES]], dtype=np.int64)
    images = [image_uri(image) for image in example_images(dataset, plan, rows, execution)]
    return {
        "samples": len(dataset),
        "n_wrong": len(wrong),
        **of_classes,
        "mistakes": [
            {
                "image": image,
                "file": shown(dataset.name_of(row)),
                "truth": _truth(dataset, row, classes),
                "said": classes[said],
                "share": float(share),
                "id": int(dataset.ids[row]),
            }
            for image, (row, said, share) in zip(images, wrong, strict=False)
        ],
    }


def _of_one_label(scores: torch.Tensor, dataset: Dataset, classes: tuple[str, ...]) -> dict[str, Any]:
    n = len(classes)
    matrix = confusion_matrix(scores, torch.from_numpy(dataset.labels), n_classes=n).numpy()
    totals = matrix.sum(axis=1)
    off = matrix * (1 - np.eye(n, dtype=np.int64))
    worst = np.argsort(-off, axis=None, kind="stable")[:PAIRS]
    pairs = [divmod(int(at), n) for at in worst if off.flat[at]]
    picture = None
    if n <= _DRAWN:
        with lettering(*classes):
            picture = svg_uri(draw_confusion(matrix, classes))
    return {
        "confusion": picture,
        "kind": "top-1",
        "classes": [
            {"name": name, "n": int(total), "value": 100 * float(matrix[c, c]) / total if total else None}
            for c, (name, total) in enumerate(zip(classes, totals, strict=True))
        ],
        "pairs": [
            {"truth": classes[t], "said": classes[s], "n": int(off[t, s]), "of": int(totals[t])}
            for t, s in pairs
        ],
    }


def _of_several_labels(
    scores: NDArray[np.floating], multi_hot: NDArray[np.int8], classes: tuple[str, ...]
) -> dict[str, Any]:
    values = class_precisions(scores, multi_hot)
    counts = (multi_hot == 1).sum(axis=0)
    return {
        "confusion": None,
        "kind": "average precision",
        "pairs": [],
        "classes": [
            {"name": name, "n": int(n), "value": None if math.isnan(value) else 100 * value}
            for name, n, value in zip(classes, counts, values, strict=True)
        ],
    }


def _truth(dataset: Dataset, row: int, classes: Sequence[str]) -> str:
    if dataset.multi_hot is None:
        return classes[int(dataset.labels[row])]
    return ", ".join(np.array(classes)[dataset.multi_hot[row] == 1]) or "none"
