"""What taught a run, for a page: each source's price, how far its answers agree with the labels and with each
other's, and the probe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cache import CacheError, Location, Store, find_stores
from pipeline.data import Dataset, Labels, Positions
from pipeline.source_outputs import StoredRows
from pipeline.stores import stored_output
from pipeline.train import TrainConfig, read_probe, splits_of, whereabouts_of
from sskt.errors import shown
from sskt.sources import LOGITS_OUTPUT, kind_of, output_of, parse_source

_ROWS = 2_000  # labelled samples that are compared


def taught(
    run: Location,
    config: TrainConfig,
    metrics: Sequence[Mapping[str, Any]],
    *,
    paths: Any,
    target: str | None,
) -> dict[str, Any]:
    """Of each source of a run, a probe's own included: forwards, bytes and agreement; how far each two agree;
    and the probe. Agreement is the adjusted mutual information of top classes, 0 for chance and 1 for the
    same partition. Raises what opening the run's data raises.
    """
    where = whereabouts_of(run, config, paths=paths, target=target)
    probe = read_probe(run)
    names = list(
        dict.fromkeys(
            [
                *(name for name in config.sources if not kind_of(name).is_fitted),
                *(probe.inputs.sources if probe else ()),
            ]
        )
    )
    dataset = splits_of(config, where.paths).train
    stores = _stores(names, config, dataset, where.paths.cache_dir)
    labelled = dataset.labelled
    positions = labelled[
        np.linspace(0, len(labelled) - 1, min(_ROWS, len(labelled))).round().astype(np.int64)
    ]
    answers = {
        name: answer
        for name, store in stores.items()
        if (answer := _top(store, dataset, positions)) is not None
    }
    return {
        "rows": [
            _row(name, stores.get(name), answers.get(name), dataset, positions, config, metrics)
            for name in names
        ],
        "compared": len(positions),
        "pairs": [
            {"a": shown(a), "b": shown(b), "agreement": agreement(answers[a], answers[b])}
            for number, a in enumerate(answers)
            for b in list(answers)[number + 1 :]
        ],
        "probe": probe and _probe(probe, stores, dataset, positions, config),
    }


def _probe(
    probe: Any,
    stores: Mapping[str, Store],
    dataset: Dataset,
    positions: Positions,
    config: TrainConfig,
) -> dict[str, Any]:
    """What a probe was fitted on, how often it is right about samples whose label it has not seen, and how
    honest its confidence is.
    """
    fitted, sources = probe.fitted, list(probe.inputs.sources)
    right = None
    if dataset.multi_hot is None and all(name in stores for name in sources):
        of_probe = {name: stores[name] for name in sources}
        rows = StoredRows(of_probe, dataset, probe.inputs.views, config.temperature)
        folds = torch.from_numpy(probe.folds_of(dataset.ids[positions]))
        said = probe.logits(rows.mean(positions), folds).argmax(dim=1).numpy()
        right = 100 * float((said == dataset.labels[positions]).mean())
    return {
        "name": shown(probe.name),
        "samples": len(probe.ids),
        "folds": fitted.n_folds,
        "views": probe.inputs.views,
        "answers": probe.inputs.answers,
        "right": right,
        "temperature": float(np.mean(fitted.temperatures)),
        "error_before": fitted.ece_before,
        "error_after": fitted.ece_after,
    }


def agreement(one: Labels, other: Labels) -> float:
    """The adjusted mutual information of two labellings (N,) of the same samples, of any classes."""
    from sklearn.metrics import adjusted_mutual_info_score  # a second of import that only reports need

    return float(adjusted_mutual_info_score(one, other))


def _stores(names: Sequence[str], config: TrainConfig, dataset: Dataset, cache_dir: Any) -> dict[str, Store]:
    """For each source the store that holds this run's rows: its plan, and the contents of every sample."""
    found: dict[str, Store] = {}
    for path in find_stores(cache_dir):
        try:
            store = Store.open(path)
            if not _holds(store, config, dataset):
                continue
        except CacheError:  # damaged, so of no use here; sskt cache ls names it
            continue
        source = store.manifest.identity["source"]
        for name in names:
            alike = parse_source(name).name == source["name"] and output_of(name) == stored_output(store)
            if (
                alike
                and config.source_weights.get(name, source["weights_sha256"]) == source["weights_sha256"]
            ):
                found.setdefault(name, store)
    return found


def _holds(store: Store, config: TrainConfig, dataset: Dataset) -> bool:
    """Whether a store has a whole view of this run's plan, of these very samples."""
    alike = store.manifest.identity["plan"] == config.plan and store.whole_views > 0
    if not alike or not np.isin(dataset.ids, store.ids).all():
        return False
    return bool(np.array_equal(store.contents[store.positions_of(dataset.ids)], dataset.contents))


def _top(store: Store, dataset: Dataset, positions: Positions) -> Labels | None:
    """A source's best class of each sample in view 0; None for a store of no logits."""
    if stored_output(store) != LOGITS_OUTPUT:
        return None
    rows = store.rows(0, store.positions_of(dataset.ids[positions]))
    best: Labels = rows.view(np.float16).astype(np.float32).argmax(axis=1)
    if store.top_k is not None:  # values come first, then the classes, best first
        best = rows.view(np.uint16)[:, store.top_k].astype(np.int64)
    return best


def _row(
    name: str,
    store: Store | None,
    answer: Labels | None,
    dataset: Dataset,
    positions: Positions,
    config: TrainConfig,
    metrics: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    losses = [each[f"aux_loss/{name}"] for each in metrics if f"aux_loss/{name}" in each]
    live = None if config.labels == "cached" else len(dataset) * len(metrics)
    with_labels = None
    if answer is not None and dataset.multi_hot is None:
        with_labels = agreement(answer, dataset.labels[positions])
    return {
        "name": shown(name),
        "forwards": live or (store and store.n_samples * store.whole_views),
        "bytes": store and store.nbytes,
        "views": store and store.whole_views,
        "agreement": with_labels,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
    }
