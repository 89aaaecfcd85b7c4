"""Classification accuracy from logits."""

from __future__ import annotations

import torch
from torch import Tensor


def topk_correct(logits: Tensor, labels: Tensor, *, k: int) -> int:
    """In how many rows the true class is among the k largest logits; logits (N, K) float, labels (N,) int64,
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
    """How often each true class (row) was taken for each class (column): int64 (n_classes, n_classes)."""
    pairs = labels * n_classes + logits.argmax(dim=1)
    return torch.bincount(pairs, minlength=n_classes**2).view(n_classes, n_classes)
