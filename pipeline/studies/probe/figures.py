"""The figures of one set of sources, from stored rows alone: what probes say of samples held out, nearest
neighbours, LEEP and H-score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.studies.probe.rows import Rows, Samples
from sskt.probe import CrossFit, cross_fit, h_score, knn_predictions, leep

_MOST_QUERIES = 5_000  # samples whose neighbours are looked for, among all
_MOST_IN_H_SCORE = 20_000


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Scores in percent of samples that no part of a probe was fitted on."""

    score: float  # of all samples
    by_fold: tuple[float, ...]

    @property
    def spread(self) -> float:
        """The standard deviation over the folds."""
        return float(np.std(self.by_fold, ddof=1))

    def gain_over(self, other: HeldOut) -> tuple[float, float]:
        """How many points better than `other` on the same folds, and the spread of that difference."""
        differences = np.subtract(self.by_fold, other.by_fold)
        return self.score - other.score, float(np.std(differences, ddof=1))


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """A score with few labels: `spread` over draws, None if there is one."""

    labels_per_class: float
    score: float
    spread: float | None


@dataclass(slots=True, eq=False)
class Figures:
    """What is known about one source, or about several together."""

    sources: tuple[str, ...]
    student_px: int
    source_px: int | None  # None: of several sources, several
    source_scale: str | None  # what their input maps record
    views: int
    all_views: HeldOut
    one_view: HeldOut | None  # None: there is one view
    knn: float | None  # top-1 in percent; None, like the next two, where it is not defined
    leep: float | None
    h_score: float | None
    answers: NDArray[np.int64]  # (n,) the class of each sample according to a probe that has not seen it
    strengths: tuple[float, ...]  # of each fold's probe
    plan: dict[str, Any]
    stores: tuple[str, ...]
    seconds: float = 0.0
    curve: list[Point] = field(default_factory=list)

    @property
    def name(self) -> str:
        """For tables; stores of several sizes share it."""
        return self.sources[0] if len(self.sources) == 1 else f"all together ({' + '.join(self.sources)})"

    @property
    def size(self) -> str:
        """What the sources were shown."""
        return f"{self.student_px} px shown at {self.source_px or 'several'} px"

    def to_dict(self) -> dict[str, Any]:
        """Plain data; scores and spreads in percent."""
        one = self.one_view
        return {
            "sources": list(self.sources),
            "student_px": self.student_px,
            "source_px": self.source_px,
            "views": self.views,
            "accuracy": self.all_views.score,
            "spread": self.all_views.spread,
            "by_fold": list(self.all_views.by_fold),
            "one_view": None if one is None else one.score,
            "one_view_spread": None if one is None else one.spread,
            "knn": self.knn,
            "leep": self.leep,
            "h_score": self.h_score,
            "strengths": list(self.strengths),
            "plan": self.plan,
            "stores": list(self.stores),
            "seconds": self.seconds,
            "curve": [
                {"labels_per_class": p.labels_per_class, "accuracy": p.score, "spread": p.spread}
                for p in self.curve
            ],
        }


def distinct_names(found: Sequence[Figures]) -> dict[Figures, str]:
    """A name for each: with its size, and with the names of its stores, where needed to tell them apart."""
    names = {figures: figures.name for figures in found}
    for more in (lambda f: f.size, lambda f: " + ".join(Path(path).stem for path in f.stores)):
        counts = Counter(names.values())
        names = {f: name if counts[name] == 1 else f"{name}, {more(f)}" for f, name in names.items()}
    return names


def fit_held_out(rows: Rows, samples: Samples) -> tuple[CrossFit, HeldOut, HeldOut | None]:
    """Cross-fit a probe as `sskt train --source probe` does, and score what it says of the mean over all
    views; and, for comparison, what it would be with one view stored.

    The latter is a probe that is fitted on view 0 and asked about view 0. Where the first is fitted on view 0
    alone (of many samples), it is that one, asked about view 0.
    """
    fit = cross_fit(rows.fitted, rows.mean[None], samples.truth, samples.folds, samples.n_classes)
    all_views = held_out(fit.held_out[0], samples)
    if rows.views == 1:
        return fit, all_views, None
    if len(rows.fitted) == 1:
        logits = _logits_without_fold(fit, rows.fitted[0], samples)
    else:
        first = rows.fitted[:1]
        logits = cross_fit(first, first, samples.truth, samples.folds, samples.n_classes).held_out[0]
    return fit, all_views, held_out(logits, samples)


def held_out(logits: NDArray[np.float64], samples: Samples) -> HeldOut:
    """Scores of logits (n, C), each sample's from the probe that was fitted without its fold."""
    folds = [np.flatnonzero(samples.folds == fold) for fold in range(samples.n_folds)]
    by_fold = tuple(samples.score(logits[rows], rows) for rows in folds)
    return HeldOut(samples.score(logits, np.arange(len(samples))), by_fold)


def knn_of(rows: Rows, samples: Samples) -> float | None:
    """Top-1 in percent of the 20 nearest neighbours outside a sample's fold."""
    if samples.several:
        return None
    queries = _spread(len(samples), _MOST_QUERIES)
    answers = knn_predictions(rows.mean.numpy(), samples.labels, samples.folds, queries=queries)
    return 100 * float((answers == samples.labels[queries]).mean())


def h_score_of(rows: Rows, samples: Samples) -> float | None:
    """See `sskt.probe.h_score`; of the mean over all views."""
    if samples.several:
        return None
    chosen = _spread(len(samples), _MOST_IN_H_SCORE)
    return h_score(rows.mean.numpy()[chosen], samples.labels[chosen])


def leep_of(logits: NDArray[np.float16], samples: Samples) -> float | None:
    """See `sskt.probe.leep`; of view 0."""
    return None if samples.several else leep(logits, samples.labels)


def _logits_without_fold(fit: CrossFit, features: Tensor, samples: Samples) -> NDArray[np.float64]:
    """Logits (n, C) of features (n, D), each sample's from the map that was fitted without its fold."""
    logits = np.empty((len(samples), samples.n_classes))
    for fold in range(samples.n_folds):
        rows = np.flatnonzero(samples.folds == fold)
        weight, bias = fit.probe.weight[fold].float(), fit.probe.bias[fold].float()
        logits[rows] = (features[rows] @ weight + bias).numpy()
    return logits


def _spread(n: int, most: int) -> NDArray[np.int64]:
    """Rows of n samples: all, or `most` of them, evenly spread."""
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).round().astype(np.int64)
