"""A finished run's student on its test split, for a page: confusions, classes, and the mistakes it is surest of."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.data import Dataset, Plan, open_renderer
from pipeline.runtime import Execution, lettering
from pipeline.studies.report.figures import data_uri, svg_uri
from pipeline.train import Evaluator, draw_confusion
from sskt.errors import shown
from sskt.metrics import class_precisions, confusion_matrix
from sskt.students import Student

MISTAKES, PAIRS = 12, 10
_DRAWN = 60  # classes; with more, the picture of a confusion matrix shows nothing
_SMALL_PX = 64  # images up to this side are kept exactly, and enlarged


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
    images = _images(dataset, plan, [row for row, _, _ in wrong[:MISTAKES]], execution)
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


def mistakes(
    scores: NDArray[np.floating], shares: NDArray[np.floating], labels: NDArray[np.int64]
) -> list[tuple[int, int, float]]:
    """(row, class said, its probability) of every row whose best class is not its label, surest first.

    scores and shares are (N, C), labels (N,).
    """
    said = scores.argmax(axis=1)
    rows = np.flatnonzero(said != labels)
    sure = shares[rows, said[rows]]
    order = np.argsort(-sure, kind="stable")
    return [(int(rows[at]), int(said[rows[at]]), float(sure[at])) for at in order]


def multilabel_mistakes(
    shares: NDArray[np.floating], multi_hot: NDArray[np.int8]
) -> list[tuple[int, int, float]]:
    """(row, class, its probability) of the worst answer about each image that has one beyond 0.5 on the wrong side;
    entries of -1 do not count.
    """
    off = np.where(multi_hot < 0, 0.0, np.abs(shares - multi_hot))
    worst = off.argmax(axis=1)
    size = off[np.arange(len(off)), worst]
    order = [int(row) for row in np.argsort(-size, kind="stable") if size[row] > 0.5]
    return [(row, int(worst[row]), float(shares[row, worst[row]])) for row in order]


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
            {"truth": classes[t], "said": classes[s], "n": int(off[t, s]), "of": int(totals[t])} for t, s in pairs
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


def _images(dataset: Dataset, plan: Plan, rows: Sequence[int], execution: Execution) -> list[str]:
    """Some samples as the student sees them, of clips the middle frame, as data URIs."""
    if not rows:
        return []
    positions = np.array(rows, dtype=np.int64)
    renderer = open_renderer(dataset.take(positions), plan, execution, batch_size=len(rows))
    with closing(renderer), closing(renderer.render(0, [np.arange(len(rows))])) as drawn:
        images = next(drawn).cpu()
    if images.ndim == 5:
        images = images[:, :, images.shape[2] // 2]
    return [_encoded(image) for image in images.permute(0, 2, 3, 1).numpy()]


def _encoded(pixels: NDArray[np.uint8]) -> str:
    out, small = io.BytesIO(), pixels.shape[0] <= _SMALL_PX
    Image.fromarray(pixels).save(out, format="PNG" if small else "JPEG", quality=88)
    return data_uri(out.getvalue(), f"image/{'png' if small else 'jpeg'}")
