"""How much a source knows of a target's classes, without fitting a network: kNN, LEEP, H-score, agreement."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_CHUNK = 1024  # queries at once


def knn_predictions(
    features: NDArray[np.float32], labels: NDArray[Any], folds: NDArray[np.int64], *, k: int = 20
) -> NDArray[np.int64]:
    """The class (N,) that most of a sample's k nearest neighbours have, by cosine, outside its own fold.

    features: (N, D). labels: (N,). With fewer than k samples outside a fold, all of them vote.
    """
    x = torch.nn.functional.normalize(torch.from_numpy(features), dim=1)
    y, n_classes = torch.from_numpy(labels), int(labels.max()) + 1
    predictions = np.empty(len(labels), dtype=np.int64)
    for fold in range(int(folds.max()) + 1):
        out = np.flatnonzero(folds == fold)
        inside = torch.from_numpy(np.flatnonzero(folds != fold))
        known, known_labels = x[inside], y[inside]
        for start in range(0, len(out), _CHUNK):
            rows = out[start : start + _CHUNK]
            nearest = (x[rows] @ known.T).topk(min(k, len(known)), dim=1).indices
            votes = torch.nn.functional.one_hot(known_labels[nearest], n_classes).sum(dim=1)
            predictions[rows] = votes.argmax(dim=1).numpy()
    return predictions


def leep(logits: NDArray[np.float32], labels: NDArray[Any]) -> float:
    """Log expected empirical prediction (Nguyen et al., 2020): the mean log-likelihood of the labels given a
    source's own classes, at most 0.

    P(y | z) is estimated from the source's probabilities; then mean_i log sum_z P(y_i | z) p(z | x_i).
    logits: (N, K). labels: (N,).
    """
    p = torch.from_numpy(logits).double().softmax(dim=1).numpy()
    joint = np.zeros((int(labels.max()) + 1, p.shape[1]))
    np.add.at(joint, labels, p)
    conditional = joint / np.maximum(joint.sum(axis=0), np.finfo(np.float64).tiny)
    expected = (p * conditional[labels]).sum(axis=1)
    return float(np.log(np.maximum(expected, np.finfo(np.float64).tiny)).mean())


def h_score(features: NDArray[np.float32], labels: NDArray[Any]) -> float:
    """H-score (Bao et al., 2019): trace(cov(f)^-1 cov(E[f | y])), from 0 to the number of classes - 1.

    The covariance is shrunk towards its diagonal mean as Ledoit and Wolf (2004) do, without which the score
    of few samples in many dimensions is a constant (Ibrahim et al., 2021). features: (N, D). labels: (N,).
    """
    from sklearn.covariance import ledoit_wolf

    x = features.astype(np.float64)
    x -= x.mean(axis=0)
    covariance, shrinkage = ledoit_wolf(x, assume_centered=True)
    means = np.stack([x[labels == c].mean(axis=0) for c in np.unique(labels)])
    shares = np.bincount(labels)[np.unique(labels)] / len(labels)
    between = (means * shares[:, None]).T @ means * (1 - shrinkage)
    return float(np.trace(np.linalg.solve(covariance, between)))


def agreement(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """The share of samples that two probes give the same class."""
    return float((first == second).mean())
