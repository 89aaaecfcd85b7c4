"""Metrics of logits: accuracy, and average precision for images with several labels."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def topk_correct(logits: Tensor, labels: Tensor, *, k: int) -> int:
    """Number of rows whose true class is among the k largest logits; logits (N, K) float, labels (N,) int64,
    k <= K.
    """
    best = logits.topk(k, dim=1).indices
    return int((best == labels[:, None]).any(dim=1).sum())


def per_class_accuracy(logits: Tensor, labels: Tensor, *, n_classes: int) -> Tensor:
    """Top-1 accuracy within each true class: float64 (n_classes,), NaN for a class without samples."""
    right = labels[logits.argmax(dim=1) == labels]
    n_right = torch.bincount(right, minlength=n_classes)
    n_all = torch.bincount(labels, minlength=n_classes)
    return n_right.to(torch.float64) / n_all


def confusion_matrix(logits: Tensor, labels: Tensor, *, n_classes: int) -> Tensor:
    """How often each true class (row) was predicted as each class (column): int64 (n_classes, n_classes)."""
    pairs = labels * n_classes + logits.argmax(dim=1)
    return torch.bincount(pairs, minlength=n_classes**2).view(n_classes, n_classes)


def average_precision(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """Mean of the precisions at which recall rises, from the highest score down; equal scores are one step.

    scores, positive: (N,). NaN without a positive. The released SSKT code applies it to the class scores of
    one image.
    """
    _, precision, recall = _curve(scores, positive)
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def voc_average_precision(
    scores: NDArray[np.floating], positive: NDArray[np.bool_], *, eleven_points: bool
) -> float:
    """Average precision as in PASCAL VOC: precision at a recall is the best at that recall or any higher.

    `eleven_points`: its mean at recalls 0, 0.1 to 1 (VOC 2007); else the area under it (since 2010). scores,
    positive: (N,). NaN without a positive.
    """
    _, precision, recall = _curve(scores, positive)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    if not eleven_points:
        return float((np.diff(recall, prepend=0.0) * best).sum())
    if np.isnan(recall).any():
        return float("nan")
    at = np.searchsorted(recall, np.linspace(0, 1, 11) - 1e-12)
    return float(np.append(best, 0.0)[at].mean())


def _curve(
    scores: NDArray[np.floating], positive: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """At each distinct score, from the highest down: the number of samples so far, precision and recall."""
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # of a run of equal scores
    right = np.cumsum(positive[order])[last]
    n_positive = int(positive.sum())
    recall = right / n_positive if n_positive else np.full(len(last), np.nan)
    return last + 1, right / (last + 1), recall


def multilabel_figures(scores: NDArray[np.floating], multi_hot: NDArray[np.int8]) -> dict[str, float]:
    """Multi-label metrics in percent: test_map, test_map_11 and test_map_plain, the mean over classes of
    VOC's area, of its eleven-point precision and of `average_precision`; and test_image_ap, the mean over
    images of the average precision over classes.

    scores, multi_hot: (N, C); entries of -1 are ignored, and so are classes and images without a positive.
    Departs from the released code, which counts an image without a positive as 0, and a class whose objects
    are all difficult as absent.
    """
    by_class = class_precisions(scores, multi_hot)
    eleven = [
        voc_average_precision(scores[counted, c], multi_hot[counted, c] == 1, eleven_points=True)
        for c, counted in enumerate((multi_hot >= 0).T)
    ]
    plain = [
        average_precision(scores[counted, c], multi_hot[counted, c] == 1)
        for c, counted in enumerate((multi_hot >= 0).T)
    ]
    by_image = [
        average_precision(row[counted], labels[counted] == 1)
        for row, labels, counted in zip(scores, multi_hot, multi_hot >= 0, strict=True)
    ]
    return {
        "test_map": 100 * float(np.nanmean(by_class)),
        "test_map_11": 100 * float(np.nanmean(eleven)),
        "test_map_plain": 100 * float(np.nanmean(plain)),
        "test_image_ap": 100 * float(np.nanmean(by_image)),
    }


def class_precisions(scores: NDArray[np.floating], multi_hot: NDArray[np.int8]) -> list[float]:
    """VOC's average precision (area) per class; NaN for a class that no image shows."""
    return [
        voc_average_precision(scores[counted, c], multi_hot[counted, c] == 1, eleven_points=False)
        for c, counted in enumerate((multi_hot >= 0).T)
    ]
