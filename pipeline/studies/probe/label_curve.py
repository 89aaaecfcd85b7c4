"""How good a probe is with 1, 2, 5, 10, ... labels per class, tested on samples whose labels it never saw."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data import Labels, MultiHot, subset
from pipeline.studies.probe.figures import HeldOut, Point
from pipeline.studies.probe.rows import Rows, Samples
from sskt.probe import fit_linear

_STRENGTH = 1e-2  # for any number of labels; measured in benchmarks/RESULTS.md
_MOST_DRAWN = 5_000  # samples; of more, there is one draw instead of one per fold


def label_curve(rows: Rows, samples: Samples, everything: HeldOut) -> list[Point]:
    """Scores by number of labels per class; the last is `everything`, the cross-validated one.

    There is one draw per fold, tested on that fold (see `draw_ranks`). The strength is fixed: a point knows
    no more labels than it says, and one label per class leaves nothing to choose a strength on.
    """
    mean = rows.fitted.mean(dim=(0, 1))
    scale = rows.fitted.std(dim=(0, 1), correction=0)
    scale = torch.where(scale > 0, scale, 1.0)
    asked = (rows.mean - mean) / scale
    ranks = [draw_ranks(samples, fold) for fold in range(samples.n_folds)]
    points = []
    for n_labels in _numbers(labels_of_all(samples)):
        drawn = [np.flatnonzero((rank >= 0) & (rank < n_labels)) for rank in ranks]
        n_draws = samples.n_folds if len(drawn[0]) <= _MOST_DRAWN else 1
        logits = np.empty((len(samples), samples.n_classes))
        tests = [np.flatnonzero(samples.folds == fold) for fold in range(n_draws)]
        for fold, test in enumerate(tests):
            fitted = (rows.fitted[:, drawn[fold]] - mean) / scale
            logits[test] = _answers(fitted, samples.truth[drawn[fold]], asked[test], samples.n_classes)
        scores = [samples.score(logits[test], test) for test in tests]
        tested = np.concatenate(tests)
        spread = float(np.std(scores, ddof=1)) if n_draws > 1 else None
        points.append(Point(n_labels, samples.score(logits[tested], tested), spread))
    return [*points, Point(labels_of_all(samples), everything.score, everything.spread)]


def draw_ranks(samples: Samples, fold: int) -> NDArray[np.int64]:
    """The place (n,) of each sample in its class when labels are drawn to be tested on `fold`; -1 for the
    samples of that fold.

    A class gives the samples of the next fold first, then those of the one after it: small draws of two folds
    share no sample, and a draw of fewer labels lies within that of more.
    """
    n_folds = samples.n_folds
    turn = ((samples.folds - fold) % n_folds).astype(np.uint64)  # 0: the fold itself
    pool = np.flatnonzero(turn > 0)
    keys = (turn << np.uint64(60)) | (samples.keys >> np.uint64(4))
    ranks = np.full(len(samples), -1, dtype=np.int64)
    ranks[pool] = subset.rank_in_class(samples.labels[pool], keys[pool])
    return ranks


def labels_of_all(samples: Samples) -> float:
    """How many labels per class, on average, a probe of the cross-validation is fitted on."""
    shared = len(samples) * (samples.n_folds - 1) / samples.n_folds
    return shared / len(np.unique(samples.labels))


def _numbers(below: float) -> list[int]:
    """1, 2, 5, 10, 20, ..., all below a number."""
    steps = (step * 10**power for power in range(12) for step in (1, 2, 5))
    return [n for n in steps if n < below]


def _answers(fitted: Tensor, truth: Labels | MultiHot, asked: Tensor, n_classes: int) -> NDArray[np.float32]:
    """Logits (m, C) of rows (m, D), by a probe fitted on rows (V, n, D) and truth (n,) or (n, C)."""
    every = torch.from_numpy(np.concatenate([truth] * len(fitted))).long()
    probe = fit_linear(fitted.flatten(0, 1), every, n_classes, strength=_STRENGTH)
    logits: NDArray[np.float32] = probe.logits(asked).numpy()
    return logits
