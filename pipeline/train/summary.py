"""What a run comes to: its best epoch, the content of summary.json, and a sentence on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.train.config import TrainConfig

History = Sequence[Mapping[str, Any]]


def summary_of(config: TrainConfig, history: list[dict[str, Any]]) -> dict[str, Any]:
    """The summary of a run whose epochs have the figures `history`."""
    last = history[-1]
    metric = config.metric
    also = [name for name in last if name.startswith("test_") and name not in (metric, "test_loss")]
    return {
        "target": config.target,
        "model": config.model,
        "method": config.method,
        "sources": list(config.sources),
        "labels": config.labels,
        **({"plain_layers": list(config.plain_layers)} if config.plain_layers else {}),
        "seed": config.seed,
        "epochs": len(history),
        "overridden": {name: list(pair) for name, pair in config.overridden.items()},
        "metric": metric,
        metric: last[metric],
        **{name: last[name] for name in also},
        **_chosen(config, history),
        "train_top1": last["train_top1"],
        **{
            name: float(np.median([m[name] for m in history]))
            for name in ("epoch_s", "label_s", "data_wait_share")
        },
    }


def summary_sentence(summary: dict[str, Any]) -> str:
    """Accuracy and seconds of a run, in one line."""
    metric = summary["metric"]
    name = {"test_top1": "test top-1", "test_map": "test mAP"}[metric]
    chosen = ""
    if summary["chosen_on"] is not None:
        where = f", epoch {summary['best_epoch']} by val" if summary["chosen_on"] == "val" else ""
        chosen = f" (best {summary[f'best_{metric}']:.2f}{where})"
    return (
        f"{summary['epochs']} epochs: {name} {summary[metric]:.2f} %{chosen}, "
        f"{summary['epoch_s']:.1f} s an epoch, of which source logits {summary['label_s']:.2f} s"
    )


def _chosen(config: TrainConfig, history: list[dict[str, Any]]) -> dict[str, Any]:
    """The best epoch's figures, and the split that chose it."""
    best, metric, watched = best_of(config, history), config.metric, config.watched
    if best is None or watched is None:
        return {"chosen_on": None}
    found = {"best_epoch": best["epoch"], "chosen_on": config.chosen_on}
    if watched == metric:
        return {f"best_{metric}": best[metric], **found}
    last = history[-1]
    seen = {watched: last[watched], f"best_{watched}": best[watched]}
    return {f"best_{metric}": last[f"best_{metric}"], **found, **seen}


def best_of(config: TrainConfig, history: History) -> Any:
    """The best epoch: the first with the largest figure on the split that chooses; on a val split, which may
    be small, the one with the smallest loss among those. None if there is no such figure.
    """
    watched = config.watched
    seen = [figures for figures in history if watched in figures]
    if watched is None or not seen:
        return None

    def rank(figures: Mapping[str, Any]) -> tuple[float, float]:
        loss = figures["val_loss"] if config.chosen_on == "val" else 0.0
        return figures[watched], -math.inf if math.isnan(loss) else -loss

    return max(seen, key=rank)
