"""Fit a probe for a run: the stored rows that it is fitted on and answers about, as features; which stores it
reads; and how it is recognised again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save

from cache import Store, digest
from pipeline.data import Dataset, Positions, subset
from pipeline.source_outputs.cached import all_classes
from sskt.errors import TooFewLabelsError
from sskt.metrics import class_precisions
from sskt.probe import CrossFittedProbe, cross_fit, folds_of, probe_features

log = logging.getLogger(__name__)

PROBE_VIEWS = ("mean", "own")  # over all stored views, or of the view that is shown
MOST_SAMPLES = 50_000  # labelled ones that a probe is fitted on; of more, equal shares of every class
MOST_ROWS = 50_000  # of those samples in several views


@dataclass(frozen=True, slots=True, eq=False)
class StoredRows:
    """What the stores of a probe's sources say of a dataset, in their first `views` views."""

    stores: Mapping[str, Store]
    dataset: Dataset
    views: int
    temperature: float  # for which top-k stores are decoded

    def per_view(self, positions: Positions) -> Iterator[torch.Tensor]:
        """The features (see `probe_features`) of some samples: float64 (n, D) per view. Raises
        StoreIncomplete or StoreDamaged.
        """
        ids = self.dataset.ids[positions]
        rows = {name: store.positions_of(ids) for name, store in self.stores.items()}
        for view in range(self.views):
            stored = (
                (store, torch.from_numpy(store.rows(view, rows[name]).view(np.float16)))
                for name, store in self.stores.items()
            )
            yield probe_features(all_classes(store, logits, self.temperature) for store, logits in stored)

    def mean(self, positions: Positions) -> torch.Tensor:
        """The mean of their features over the views: float64 (n, D)."""
        per_view = self.per_view(positions)
        total = next(per_view)
        for features in per_view:
            total += features
        return total / self.views


@dataclass(frozen=True, slots=True)
class ProbeInputs:
    """What a probe is a function of, as plain data: two runs with the same are taught the same."""

    sources: Mapping[str, str]  # in the order of their columns: digest of source, input map and plan
    views: int
    answers: str  # one of PROBE_VIEWS
    labels_sha256: str  # of the labelled samples' ids and labels

    @property
    def sha256(self) -> str:
        """What tells one probe from another, wherever it was computed."""
        parts = {**self.to_dict(), "sources": [*self.sources.values()]}
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "sources": dict(self.sources),
            "views": self.views,
            "answers": self.answers,
            "labels_sha256": self.labels_sha256,
        }


@dataclass(frozen=True)
class RunProbe:
    """A fitted probe, what it was fitted on, and the fold of each labelled sample."""

    name: str  # "probe:imagenet+places365"
    inputs: ProbeInputs
    fitted: CrossFittedProbe
    ids: NDArray[np.int64]  # of the samples that it was fitted on, sorted
    folds: NDArray[np.int64]  # theirs

    @property
    def n_classes(self) -> int:
        """Of its logits: the target's."""
        return int(self.fitted.bias.shape[1])

    def folds_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The fold of each sample id (N,); the number of folds for samples that it was not fitted on."""
        at = np.searchsorted(self.ids, ids).clip(max=len(self.ids) - 1)
        return np.where(self.ids[at] == ids, self.folds[at], self.fitted.n_folds)

    @cached_property
    def _maps(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All K + 1 maps side by side: (D, (K + 1) * C), and their biases."""
        return self.fitted.weight.permute(1, 0, 2).flatten(1).contiguous(), self.fitted.bias.flatten()

    def logits(self, features: torch.Tensor, folds: torch.Tensor) -> torch.Tensor:
        """Calibrated logits, float16 (n, C), of features float64 (n, D) (see `probe_features`) of samples of
        these folds (n,).

        In float64, so that a batch and a whole view give the same float16.
        """
        weight, bias = (part.to(features.device) for part in self._maps)
        answers = (features @ weight + bias).reshape(len(folds), -1, self.n_classes)
        own: torch.Tensor = answers[torch.arange(len(folds), device=folds.device), folds]
        return own.half()

    def to_bytes(self) -> bytes:
        """As a safetensors file, which `from_bytes` reads."""
        fitted = self.fitted
        tensors = {
            "weight": fitted.weight.contiguous(),
            "bias": fitted.bias.contiguous(),
            "ids": torch.from_numpy(self.ids),
            "folds": torch.from_numpy(self.folds),
            "choices": torch.tensor([fitted.strengths, fitted.temperatures], dtype=torch.float64),
            "ece": torch.tensor([fitted.ece_before, fitted.ece_after], dtype=torch.float64),
        }
        about = json.dumps({"name": self.name, "inputs": self.inputs.to_dict()})
        return save(tensors, metadata={"probe": about})  # one entry: several would come in any order

    @classmethod
    def from_bytes(cls, content: bytes) -> RunProbe:
        """Read what `to_bytes` wrote."""
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        about, tensors = json.loads(header["__metadata__"]["probe"]), load(content)
        strengths, temperatures = tensors["choices"].tolist()
        before, after = tensors["ece"].tolist()
        fitted = CrossFittedProbe(
            tensors["weight"],
            tensors["bias"],
            tuple(strengths),
            tuple(temperatures),
            before,
            after,
        )
        inputs = ProbeInputs(**about["inputs"])
        return cls(about["name"], inputs, fitted, tensors["ids"].numpy(), tensors["folds"].numpy())


def inputs_of(rows: StoredRows, answers: str) -> ProbeInputs:
    """What a probe on these rows and their dataset's labels would be a function of."""
    dataset = rows.dataset
    positions = fitted_positions(dataset)
    labels = dataset.ids[positions].astype("<i8").tobytes() + dataset.truth[positions].astype("<i8").tobytes()
    sources = {name: digest(_seen(store)) for name, store in rows.stores.items()}
    return ProbeInputs(sources, rows.views, answers, hashlib.sha256(labels).hexdigest())


def fit_probe(name: str, rows: StoredRows, *, answers: str) -> RunProbe:
    """Fit a probe on the rows of the labelled samples, and say how good it is.

    `answers`, one of PROBE_VIEWS, is what it will be asked about. Raises TooFewLabelsError, StoreIncomplete
    or StoreDamaged.
    """
    started, dataset = perf_counter(), rows.dataset
    positions = fitted_positions(dataset)
    ids, truth = dataset.ids[positions], dataset.truth[positions]
    if len(positions) < 2:
        raise TooFewLabelsError(
            f"{name}: {dataset.target} has {len(positions)} labelled sample(s)", "label more of them"
        )
    folds = folds_of(truth, subset.draws(ids), dataset.classes)
    features, asked = rows_to_fit(rows, positions, answers=answers)
    fitted, held_out = cross_fit(features, asked, truth, folds, len(dataset.classes))
    probe = RunProbe(name, inputs_of(rows, answers), fitted, *_sorted(ids, folds))
    log.info(
        f"{name}: fitted on {len(positions):,} labelled samples in {perf_counter() - started:.1f} s; "
        f"cross-validated {_rightness(held_out, truth)}, calibration error {fitted.ece_before:.3f}, "
        f"{fitted.ece_after:.3f} after calibration"
    )
    return probe


def rows_to_fit(rows: StoredRows, positions: Positions, *, answers: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What `sskt.probe.cross_fit` takes: float32 (V, n, D) to fit on and (M, n, D) to ask about.

    V is as many of the views as MOST_ROWS allow, at least one. For answers "mean", M is 1, the mean over
    all views.
    """
    n_fitted = max(1, min(rows.views, MOST_ROWS // len(positions)))
    fitted, total = [], None
    for view, features in enumerate(rows.per_view(positions)):
        if view < n_fitted:
            fitted.append(features.float())
        total = features if total is None else total + features
        if answers == "own" and view + 1 == n_fitted:
            break
    of_views = torch.stack(fitted)
    assert total is not None  # noqa: S101 - a store has a view
    return of_views, of_views if answers == "own" else (total / rows.views).float()[None]


def fitted_positions(dataset: Dataset) -> Positions:
    """The rows of a dataset that a probe is fitted on: those with a label, of many some."""
    labelled = dataset.labelled
    if len(labelled) <= MOST_SAMPLES:
        return labelled
    chosen = subset.stratify(dataset.labels[labelled], subset.draws(dataset.ids[labelled]), MOST_SAMPLES)
    return labelled[chosen]


def _rightness(logits: NDArray[np.float64], truth: NDArray[Any]) -> str:
    if truth.ndim == 1:
        return f"top-1 {100 * (logits.argmax(axis=2) == truth).mean():.1f} %"
    precisions = [class_precisions(of_view.astype(np.float32), truth) for of_view in logits]
    return f"mAP {100 * np.nanmean(precisions):.1f} %"


def _sorted(ids: NDArray[np.int64], folds: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    order = np.argsort(ids)
    return ids[order], folds[order]


def _seen(store: Store) -> dict[str, Any]:
    """What a store's rows are made by; of which samples, their ids say."""
    identity = store.manifest.identity
    return {
        "source": {**identity["source"], "name": None},
        "input": identity["input"],
        "plan": identity["plan"],
    }
