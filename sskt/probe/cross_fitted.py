"""A probe whose answer about a labelled sample has not seen that sample's label.

K probes are fitted, each without one of K folds. A labelled sample is answered by the probe that was fitted
without its fold, any other by the mean of all K. One fitted on everything would give a labelled sample its
own label back, with a confidence that unlabelled ones never get.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sskt.errors import TooFewLabelsError, shown
from sskt.probe.calibration import calibrate, expected_calibration_error, log_loss
from sskt.probe.linear import STRENGTHS, LinearProbe, fit_linear

MOST_FOLDS = 5
_MOST_TO_CHOOSE = 5_000  # rows on which strength and temperature are chosen


@dataclass(frozen=True, slots=True, eq=False)
class CrossFittedProbe:
    """K + 1 linear maps: one a fold, and their mean, as float64 `weight` (K + 1, D, C) and `bias` (K + 1, C).

    They take features as they come and give calibrated logits: standardisation and temperature are part of
    them.
    """

    weight: Tensor
    bias: Tensor
    strengths: tuple[float, ...]  # of each fold's probe
    temperatures: tuple[float, ...]  # that its logits were divided by
    ece_before: float  # expected calibration error of samples held out, before that division
    ece_after: float

    @property
    def n_folds(self) -> int:
        """K."""
        return len(self.weight) - 1


class CrossFit(NamedTuple):
    """A probe and its calibrated logits, float64 (M, N, C), for the samples that it was fitted on, each by
    the map that was fitted without its fold.
    """

    probe: CrossFittedProbe
    held_out: NDArray[np.float64]


def folds_of(truth: NDArray[Any], keys: NDArray[np.uint64], classes: Sequence[str]) -> NDArray[np.int64]:
    """The fold (N,) of each labelled sample: classes are dealt out evenly, in the order of `keys`.

    truth: labels (N,), or multi-hot (N, C), of which the rarest class that a sample shows counts. There are
    five folds, or as many as the smallest class has samples. Raises TooFewLabelsError, naming the `classes`,
    for some with one sample: a probe fitted without it would not know that class.
    """
    labels = truth if truth.ndim == 1 else _rarest(truth)
    counts = np.bincount(labels)
    smallest = int(counts[counts > 0].min())
    if truth.ndim == 1 and smallest < 2:
        single = [classes[label] for label in np.flatnonzero(counts == 1).tolist()]
        raise TooFewLabelsError(
            f"{len(single)} class(es) have one labelled sample ({_some(single)}), and a probe is fitted "
            f"without the sample that it answers",
            "label at least two of each class",
        )
    n_folds = max(2, min(MOST_FOLDS, smallest))
    order = np.lexsort((keys, labels))
    folds = np.empty(len(labels), dtype=np.int64)
    folds[order] = np.arange(len(labels)) % n_folds
    return folds


def _some(names: Sequence[str]) -> str:
    """The first names, for a message."""
    return shown(", ".join([*names[:3], *(["..."] if len(names) > 3 else [])]))


def cross_fit(
    features: Tensor, asked: Tensor, truth: NDArray[Any], folds: NDArray[np.int64], n_classes: int
) -> CrossFit:
    """Fit a probe on labelled samples.

    features: float32 (V, N, D), V rows of each of N samples to fit on. asked: float32 (M, N, D), the kind of
    rows that the probe will be asked about, for which it is calibrated. truth: labels (N,) or multi-hot
    (N, C). Strength and temperature of a fold's probe are chosen on the next fold, by a probe fitted without
    both: no label of a fold has a part in what it is told. The standardisation is that of all features, and
    knows no label.
    """
    mean = features.mean(dim=(0, 1))
    scale = features.std(dim=(0, 1), correction=0)
    scale = torch.where(scale > 0, scale, 1.0)
    samples = _Samples((features - mean) / scale, (asked - mean) / scale, truth, n_classes)
    n_folds = int(folds.max()) + 1
    probes, choices = [], []
    raw = np.empty((len(asked), len(truth), n_classes))
    for fold in range(n_folds):
        choice = _choose(samples, folds, fold, n_folds)
        probe = samples.fit(np.flatnonzero(folds != fold), choice.strength, start=None)
        raw[:, folds == fold] = samples.logits(probe, np.flatnonzero(folds == fold))
        probes.append(probe)
        choices.append(choice)
    temperatures = np.array([choice.temperature for choice in choices])
    held_out = raw / temperatures[folds][None, :, None]
    every = _per_row(truth, len(asked))
    weight, bias = _stacked(probes, mean, scale, temperatures)
    fitted = CrossFittedProbe(
        weight,
        bias,
        tuple(choice.strength for choice in choices),
        tuple(temperatures.tolist()),
        expected_calibration_error(raw.reshape(-1, n_classes), every),
        expected_calibration_error(held_out.reshape(-1, n_classes), every),
    )
    return CrossFit(fitted, held_out)


@dataclass(frozen=True, slots=True, eq=False)
class _Samples:
    """Standardised rows of N samples, to fit on and to ask about, and their labels."""

    features: Tensor  # (V, N, D)
    asked: Tensor  # (M, N, D)
    truth: NDArray[Any]
    n_classes: int

    def fit(self, samples: NDArray[np.int64], strength: float, start: LinearProbe | None) -> LinearProbe:
        """A probe fitted on every row of some samples."""
        rows = self.features[:, torch.from_numpy(samples)].flatten(0, 1)
        truth = torch.from_numpy(_per_row(self.truth[samples], len(self.features))).long()
        return fit_linear(rows, truth.to(rows.device), self.n_classes, strength=strength, start=start)

    def logits(self, probe: LinearProbe, samples: NDArray[np.int64]) -> NDArray[np.float64]:
        """Its logits (M, n, C) for some samples."""
        logits: NDArray[np.float64] = (
            probe.logits(self.asked[:, torch.from_numpy(samples)]).cpu().double().numpy()
        )
        return logits


class _Choice(NamedTuple):
    """What a fold's probe is fitted with and divided by."""

    strength: float = 1e-3
    temperature: float = 1.0


def _choose(samples: _Samples, folds: NDArray[np.int64], fold: int, n_folds: int) -> _Choice:
    """Strength and temperature for the probe without `fold`: those of the smallest log-loss on the next fold,
    after fitting without either. With two folds nothing is left to fit on, and both are fixed.
    """
    if n_folds == 2:
        return _Choice()
    following = (fold + 1) % n_folds
    inside = _spread((folds != fold) & (folds != following), len(samples.features))
    held_out = _spread(folds == following, len(samples.asked))
    truth = _per_row(samples.truth[held_out], len(samples.asked))
    best, lowest, probe = _Choice(), np.inf, None
    for strength in STRENGTHS:
        probe = samples.fit(inside, strength, start=probe)
        logits = samples.logits(probe, held_out).reshape(-1, samples.n_classes)
        temperature = calibrate(logits, truth)
        loss = log_loss(logits / temperature, truth)
        if loss > lowest:
            break  # the loss falls and then rises with the strength
        best, lowest = _Choice(strength, temperature), loss
    return best


def _spread(mask: NDArray[np.bool_], rows_each: int) -> NDArray[np.int64]:
    """The samples of a mask, or as many of them, evenly spread, as are quickly fitted."""
    samples, most = np.flatnonzero(mask), max(1, _MOST_TO_CHOOSE // rows_each)
    if len(samples) <= most:
        return samples
    return samples[np.linspace(0, len(samples) - 1, most).round().astype(np.int64)]


def _per_row(truth: NDArray[Any], rows_each: int) -> NDArray[Any]:
    """The truth of rows (V, N, D), flattened to (V * N, D)."""
    return np.concatenate([truth] * rows_each)


def _stacked(
    probes: list[LinearProbe], mean: Tensor, scale: Tensor, temperatures: NDArray[np.float64]
) -> tuple[Tensor, Tensor]:
    """Weights and biases for features that are not standardised, divided by each temperature; the last of
    each is the mean.
    """
    weights = torch.stack([probe.weight for probe in probes]).double() / scale.double()[:, None]
    biases = torch.stack([probe.bias for probe in probes]).double() - mean.double() @ weights
    divisors = torch.from_numpy(temperatures).to(weights.device)[:, None]
    weights, biases = weights / divisors[..., None], biases / divisors
    return torch.cat([weights, weights.mean(0, keepdim=True)]), torch.cat(
        [biases, biases.mean(0, keepdim=True)]
    )


def _rarest(multi_hot: NDArray[Any]) -> NDArray[np.int64]:
    """Of each sample, the class present in the fewest samples; C where none is present."""
    counts = (multi_hot == 1).sum(axis=0)
    rarity = np.where(multi_hot == 1, counts, len(multi_hot) + 1)
    rarest = rarity.argmin(axis=1)
    label: NDArray[np.int64] = np.where((multi_hot == 1).any(axis=1), rarest, multi_hot.shape[1])
    return label
