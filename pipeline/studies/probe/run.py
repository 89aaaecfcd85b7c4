"""Look at a target's stored sources: which is worth it, before anything is trained."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from pipeline.data import Augmentation, open_dataset
from pipeline.runtime import Paths, coerce
from pipeline.studies.probe.advice import choose, know_anything, recommend
from pipeline.studies.probe.figures import (
    Figures,
    distinct_names,
    fit_held_out,
    h_score_of,
    knn_of,
    leep_of,
)
from pipeline.studies.probe.label_curve import label_curve
from pipeline.studies.probe.picture import draw_to, require_writable
from pipeline.studies.probe.rows import Rows, Samples, first_logits, join, read_rows
from pipeline.studies.probe.stored import StoreGroup, holds_logits, parts_of, store_groups
from pipeline.studies.probe.train_command import train_command
from pipeline.train import keep_labels
from sskt.errors import RunError
from sskt.probe import agreement
from sskt.recipes import recipe_for
from sskt.sources import kind_of

log = logging.getLogger(__name__)


def probe(
    target: str,
    *,
    sources: str | Sequence[str] = (),
    paths: Paths | None = None,
    augmentation: Augmentation | None = None,
    limit: int | None = None,
    labels_per_class: int | None = None,
    picture: Path | None = None,
) -> dict[str, Any]:
    """Compare the sources that are stored for a target's training split, without a forward or a student.

    Without `sources`, every source with a whole view stored is looked at, except students of ours. The sizes
    of `augmentation` choose among stores of several sizes; without, each size is listed. `picture`: a PNG of
    the score by number of labels per class. Returns the figures, best set of sources first under "rows", how
    often pairs agree, and a recommendation; docs/method.md, section 2.9, says what each figure means. Raises
    RunError if there is no store or there are too few labels.
    """
    paths, target = paths or Paths(), coerce.text(target, "target")
    names = coerce.texts(sources, "sources")
    limit = coerce.whole_or_none(limit, "limit")
    labels_per_class = coerce.whole_or_none(labels_per_class, "labels_per_class")
    picture = None if picture is None else coerce.path(picture, "picture")
    if picture is not None:
        require_writable(picture)
    started = perf_counter()
    samples = _open_samples(target, paths, limit, labels_per_class)
    groups = store_groups(
        target,
        samples.dataset,
        names,
        paths=paths,
        augmentation=augmentation or Augmentation(),
        limit=limit,
    )
    found, report = compare(groups, samples, temperature=recipe_for(target).temperature)
    command = train_command(
        target, choose(found), paths=paths, limit=limit, labels_per_class=labels_per_class
    )
    report |= {
        "target": target,
        "train": command if know_anything(found, samples) else None,
        "seconds": perf_counter() - started,
    }
    if picture is not None:
        draw_to(picture, report)
        report["picture"] = str(picture)
    return report


def compare(
    groups: Sequence[StoreGroup], samples: Samples, *, temperature: float
) -> tuple[list[Figures], dict[str, Any]]:
    """The figures of every set of sources, best first, and all that is known as plain data. Stores are read
    once. `temperature` is what top-k stores are decoded for.
    """
    found = [figures for group in groups for figures in _look(group, samples, temperature)]
    found.sort(key=lambda figures: -figures.all_views.score)
    return found, _report(samples, found)


def _open_samples(target: str, paths: Paths, limit: int | None, labels_per_class: int | None) -> Samples:
    """The labelled training samples of a target."""
    if labels_per_class == 1:
        raise RunError(
            "--labels-per-class is 1, and a probe is tested on labels that it was not fitted on; keep at "
            "least 2 per class"
        )
    dataset = open_dataset(target, "train", paths=paths, limit=limit)
    if labels_per_class is not None:
        dataset = keep_labels(dataset, labels_per_class)
    samples, n_labelled = Samples(dataset), len(dataset.labelled)
    if len(samples) < n_labelled:
        log.info(
            f"{len(samples):,} of {n_labelled:,} labelled samples are looked at, equal shares of every class"
        )
    return samples


def _look(group: StoreGroup, samples: Samples, temperature: float) -> list[Figures]:
    """The figures of every source of a group, and of all together."""
    rows: dict[str, Rows] = {}
    found = []
    for name, store in group.stores.items():
        _remark(name, group)
        started = perf_counter()
        rows[name] = read_rows(store, name, samples, views=group.views, temperature=temperature)
        figures = _figures(group, (name,), rows[name], samples)
        if holds_logits(store):
            figures.leep = leep_of(first_logits(store, samples, temperature), samples)
        figures.seconds = perf_counter() - started
        found.append(figures)
    if len(rows) > 1:
        started = perf_counter()
        together = _figures(group, tuple(rows), join([*rows.values()]), samples)
        together.seconds = perf_counter() - started
        found.append(together)
    return found


def _remark(name: str, group: StoreGroup) -> None:
    store = group.stores[name]
    if group.views < store.whole_views:
        log.info(
            f"{name}: the first {group.views} of {store.whole_views} views are used, as many as every source "
            f"of this size has"
        )
    if kind_of(str(parts_of(store)[0]["name"])).must_be_named:
        log.warning(
            f"{name} is a student of yours; if it was trained on these labels, its figures are too high"
        )


def _figures(group: StoreGroup, names: tuple[str, ...], rows: Rows, samples: Samples) -> Figures:
    """What is known from rows; LEEP is left to the caller."""
    stores = [group.stores[name] for name in names]
    shown = [parts_of(store)[1] for store in stores]
    sides, scales = {each["side_px"] for each in shown}, {each.get("scale") for each in shown}
    plan = parts_of(stores[0])[2]
    fit, all_views, one_view = fit_held_out(rows, samples)
    return Figures(
        sources=names,
        student_px=plan["side_px"],
        source_px=sides.pop() if len(sides) == 1 else None,
        source_scale=scales.pop() if len(scales) == 1 else None,
        views=rows.views,
        all_views=all_views,
        one_view=one_view,
        knn=knn_of(rows, samples),
        leep=None,
        h_score=h_score_of(rows, samples),
        answers=fit.held_out[0].argmax(axis=1),
        strengths=fit.probe.strengths,
        plan=plan,
        stores=tuple(str(store.path) for store in stores),
        curve=label_curve(rows, samples, all_views),
    )


def _report(samples: Samples, found: list[Figures]) -> dict[str, Any]:
    """Everything, as plain data."""
    counts = np.bincount(samples.labels[samples.labels >= 0], minlength=samples.n_classes)
    names = distinct_names(found)
    singles = [figures for figures in found if len(figures.sources) == 1]
    return {
        "split": "train",
        "samples": len(samples.dataset),
        "labelled": len(samples),
        "classes": samples.n_classes,
        "labels_per_class": [int(counts.min()), int(counts.max())],
        "metric": samples.metric,
        "folds": samples.n_folds,
        "chance": samples.chance,
        "rows": [{"name": names[figures], **figures.to_dict()} for figures in found],
        "agreement": [
            {"of": [names[one], names[other]], "agreement": 100 * agreement(one.answers, other.answers)}
            for one, other in combinations(singles, 2)
            if one.size == other.size
        ],
        "recommendation": recommend(found, samples, names),
    }
