"""How much a source knows of a target's classes, without fitting a network: kNN, LEEP, H-score, agreement."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax

_CHUNK = 1024  # samples at once
_TINY = np.finfo(np.float64).tiny


def knn_predictions(
    features: NDArray[np.float32],
    labels: NDArray[Any],
    folds: NDArray[np.int64],
    *,
    k: int = 20,
    queries: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """The class (Q,) that most of a sample's k nearest neighbours have, by cosine, outside its own fold; of
    several such classes the first.

    features: (N, D). labels: (N,). queries: rows (Q,) of the samples that are asked about; None: all. With
    fewer than k samples outside a fold, all of them vote.
    """
    asked = np.arange(len(labels)) if queries is None else queries
    x = torch.nn.functional.normalize(torch.from_numpy(features), dim=1)
    y, n_classes = torch.from_numpy(labels), int(labels.max()) + 1
    predictions = np.empty(len(asked), dtype=np.int64)
    for fold in np.unique(folds[asked]):
        own = np.flatnonzero(folds[asked] == fold)
        inside = torch.from_numpy(np.flatnonzero(folds != fold))
        known, known_labels = x[inside], y[inside]
        for places in np.split(own, range(_CHUNK, len(own), _CHUNK)):
            nearest = (x[asked[places]] @ known.T).topk(min(k, len(known)), dim=1).indices
            votes = torch.nn.functional.one_hot(known_labels[nearest], n_classes).sum(dim=1)
            predictions[places] = votes.argmax(dim=1).numpy()
    return predictions


def leep(logits: NDArray[np.float16 | np.float32], labels: NDArray[Any]) -> float:
    """Log expected empirical prediction (Nguyen et al., 2020): the mean log-likelihood of the labels given a
    source's own classes, at most 0.

    P(y | z) is estimated from the source's probabilities; then mean_i log sum_z P(y_i | z) p(z | x_i).
    logits: (N, K). labels: (N,).
    """
    parts = [slice(start, start + _CHUNK) for start in range(0, len(labels), _CHUNK)]
    joint = np.zeros((int(labels.max()) + 1, logits.shape[1]))
    for part in parts:
        p = softmax(logits[part].astype(np.float64), axis=1)
        joint += (labels[part] == np.arange(len(joint))[:, None]) @ p
    conditional = joint / np.maximum(joint.sum(axis=0), _TINY)
    total = 0.0
    for part in parts:
        p = softmax(logits[part].astype(np.float64), axis=1)
        total += float(np.log(np.maximum((p * conditional[labels[part]]).sum(axis=1), _TINY)).sum())
    return total / len(labels)


def h_score(features: NDArray[np.float32], labels: NDArray[Any]) -> float:
    """H-score (Bao et al., 2019): trace(cov(f)^-1 cov(E[f | y])), from 0 to the number of classes - 1.

    cov(f) is shrunk towards its diagonal mean by the intensity of Ledoit and Wolf (2004), and the other
    towards 0 by the same, as Ibrahim et al. (2021) do: without that, the score of few samples in many
    dimensions is a constant. features: (N, D). labels: (N,).
    """
    from sklearn.covariance import ledoit_wolf

    x = features.astype(np.float64)
    x -= x.mean(axis=0)
    covariance, shrinkage = ledoit_wolf(x, assume_centered=True)
    classes, counts = np.unique(labels, return_counts=True)
    means = np.stack([x[labels == c].mean(axis=0) for c in classes])
    between = (means * (counts / len(labels))[:, None]).T @ means * (1 - shrinkage)
    return float(np.trace(np.linalg.solve(covariance, between)))


def agreement(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """The share of samples that two probes give the same class."""
    return float((first == second).mean())
