"""Several trained students of one target as one classifier: the baselines "models fusion" and "models
ensemble" of graph distillation (Zhang and Peng, IJCAI 2018, table 2).

Fusion is the mean of their probabilities. The ensemble is a linear classifier on what their heads read,
joined. The paper does not say which; ours is logistic regression with C = 1 on standardised features.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache import Location
from pipeline.data import Dataset, Plan, open_dataset
from pipeline.runtime import Execution, Paths, choose_execution, coerce, mute_remarks, write_result
from pipeline.train import (
    EVALUATION_CLIPS,
    Evaluator,
    TrainConfig,
    labelled_list_of,
    open_finished,
    open_splits,
    require_contents,
    scoring_split,
    whereabouts_of,
)
from sskt.errors import RunError
from sskt.metrics import multilabel_figures, topk_correct
from sskt.probe import fit_linear

_STRENGTH = 1.0  # C of the logistic regression


def ensemble(
    runs: Sequence[Location | str],
    *,
    out: Path | str | None = None,
    paths: Paths | None = None,
    target: str | None = None,
    execution: Execution | None = None,
    clips: int | str = EVALUATION_CLIPS,
) -> list[dict[str, Any]]:
    """Score two or more finished runs on their target's test split: each alone, their fusion, and a linear
    classifier on their features. Returns a row for each of these, and writes them to `out`/ensemble.json.

    Every student sees its own evaluation views, of videos `clips` of each. The classifier is fitted to the
    labelled samples that the runs were trained on, seen in the same views. Data are looked for where the
    first run found them. Raises RunError for fewer than two runs, unfinished ones, and runs of other classes,
    test samples or training samples.
    """
    folders = coerce.places(runs, "runs")
    if len(folders) < 2:
        raise RunError(f"an ensemble needs two or more runs, {len(folders)} is named; name the others")
    execution = execution or choose_execution()
    opened = [open_finished(run, clips) for run in folders]
    first = opened[0].config
    _require_alike(folders, [finished.config for finished in opened])
    where = whereabouts_of(folders[0], first, paths=paths, target=target)
    train, test = _open(folders[0], first, where.target, where.paths)
    evaluators: dict[Plan, tuple[Evaluator, Evaluator]] = {}  # they keep what is drawn
    rows, fused, parts = [], [], []
    for finished in opened:
        plan, config = finished.plan, finished.config
        if plan not in evaluators:
            evaluators[plan] = Evaluator(train, plan, execution), Evaluator(test, plan, execution)
        student = finished.student("last", None, execution, where.paths)
        of_train, of_test = (each.predict_with_features(student, config.amp) for each in evaluators[plan])
        fused.append(of_test[0])
        parts.append((of_train[1], of_test[1]))
        rows.append({"what": str(finished.folder), "model": config.model, **_figures(of_test[0], test)})
    rows.append({"what": "fusion", "model": None, **_figures(torch.stack(fused).mean(dim=0), test)})
    seen, asked = (torch.cat(features, dim=1) for features in zip(*parts, strict=True))
    rows.append({"what": "linear", "model": None, **_figures(_classify(seen, train, asked), test)})
    if out is not None:
        report = {"target": test.target, "split": test.split, "rows": rows}
        write_result(coerce.path(out, "out") / "ensemble.json", json.dumps(report, indent=2).encode())
    return rows


def _require_alike(folders: Sequence[Location], configs: Sequence[TrainConfig]) -> None:
    """Raise RunError unless all runs have the same classes, and were trained and scored on the same
    samples.
    """
    first = configs[0]
    for run, config in zip(folders, configs, strict=True):
        if config.is_own:
            raise RunError(
                f"{run}: its student is {config.model}, which only its caller can build; leave it out"
            )
        parts = {
            "classes": (config.classes, first.classes),
            "training samples": (config.contents.get("train"), first.contents.get("train")),
            "test samples": (config.contents.get("test"), first.contents.get("test")),
        }
        for what, (ours, theirs) in parts.items():
            if ours != theirs:
                raise RunError(
                    f"{run}: has other {what} than {folders[0]}; name runs of one target and split"
                )


def _open(run: Location, config: TrainConfig, target: str, paths: Paths) -> tuple[Dataset, Dataset]:
    """The labelled samples that a run was trained on, and its test split. Raises RunError if they are others
    by now.
    """
    with mute_remarks():
        splits = open_splits(
            target,
            paths=paths,
            limit=config.limit,
            val_share=config.val_share or (None if config.chosen_on else 0.0),
            chosen_on=config.chosen_on,
            labels_per_class=config.labels_per_class,
            labelled_list=None if config.labelled_list is None else labelled_list_of(run, config),
        )
    test = open_dataset(target, scoring_split(config, target, paths), paths=paths)
    now = {"train": splits.train.content_sha256, "test": test.content_sha256}
    require_contents(run, config.contents, now, target, "give the data that it was trained with")
    return splits.train.take(splits.train.labelled), test


def _classify(features: Tensor, dataset: Dataset, asked: Tensor) -> Tensor:
    """Scores (n, classes) for `asked`, (n, D), by a classifier fitted to a dataset's `features`."""
    mean, std = features.mean(dim=0), features.std(dim=0, unbiased=False)
    std = torch.where(std > 0, std, 1.0)  # a constant feature says nothing
    truth = torch.from_numpy(dataset.truth)
    fitted = fit_linear((features - mean) / std, truth, len(dataset.classes), strength=_STRENGTH)
    return fitted.logits((asked - mean) / std)


def _figures(scores: Tensor, test: Dataset) -> dict[str, float]:
    """In percent; `scores` are (n, classes)."""
    if test.multi_hot is not None:
        return multilabel_figures(scores.numpy(), test.multi_hot)
    truth = torch.from_numpy(test.labels)
    ks = (1, 5) if len(test.classes) > 5 else (1,)
    return {f"test_top{k}": 100 * topk_correct(scores, truth, k=k) / len(test) for k in ks}
