"""How honest a classifier's confidence is, and the one temperature that makes it so (Guo et al., 2017)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_softmax, softmax

_BINS = 15
_RANGE = (np.log(0.05), np.log(20.0))  # of temperatures that are tried


def calibrate(logits: NDArray[np.float64], truth: NDArray[Any]) -> float:
    """The temperature by which to divide logits (N, C) of samples that were held out, for the smallest
    negative log-likelihood of `truth`: labels (N,), or multi-hot (N, C) with -1 not counted.
    """
    from scipy.optimize import minimize_scalar  # half a second of import that only a probe needs

    found = minimize_scalar(
        lambda log_t: log_loss(logits / np.exp(log_t), truth), bounds=_RANGE, method="bounded"
    )
    return float(np.exp(found.x))


def log_loss(logits: NDArray[np.float64], truth: NDArray[Any]) -> float:
    """Mean negative log-likelihood of `truth`; of several labels, the mean over what is counted."""
    if truth.ndim == 1:
        return float(-log_softmax(logits, axis=1)[np.arange(len(truth)), truth].mean())
    signs = np.where(truth == 1, 1.0, -1.0)
    terms = np.logaddexp(0.0, -signs * logits)
    return float(terms[truth >= 0].mean())


def expected_calibration_error(logits: NDArray[np.float64], truth: NDArray[Any]) -> float:
    """Mean |confidence - accuracy| over 15 equal bins of confidence, weighted by their samples, in [0, 1].

    Of labels (N,), the confidence is the largest probability; of multi-hot (N, C), each class's own.
    """
    if truth.ndim == 1:
        probabilities = softmax(logits, axis=1)
        confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    else:
        counted = truth >= 0
        confidence, right = expit(logits)[counted], truth[counted] == 1
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS)
    sums = np.bincount(bins, weights=confidence - right, minlength=_BINS)
    return float(np.abs(sums).sum() / counts.sum())
