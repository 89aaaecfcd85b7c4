"""Reopen what a store's rows were made from, images, plan, input map and source, from the store's record."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cache import Store, StoreMismatch, require_match
from pipeline.data import Dataset, Plan, load_shared, parse_target, plan_from
from pipeline.runtime import Paths
from pipeline.stores.alike import with_recorded_names
from pipeline.stores.fingerprint import identity, source_identity, source_plan
from sskt.sources import LOGITS, LOGITS_OUTPUT, Contract, InputMap, Source, reopen_source

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Origin:
    """Everything that a store's logits are a function of."""

    dataset: Dataset  # the store's samples, in the order of its rows
    plan: Plan
    source: Source
    input_map: InputMap

    @property
    def source_plan(self) -> Plan:
        """The plan as rendered for the source."""
        return source_plan(self.input_map, self.plan)


def open_origin(
    store: Store, paths: Paths, *, target: str | None = None, weights: Path | None = None
) -> Origin:
    """Open what a store was made from; `target` and `weights` say where to find it if it has moved.

    Raises StoreMismatch, naming the field, if anything differs from the store's fingerprint, and whatever
    opening a target or a source raises.
    """
    recorded, options = store.manifest.identity, store.manifest.made_by.get("asked", {})
    dataset = open_dataset_of(store, paths, target=target)
    name = recorded["source"]["name"]
    told = Contract.from_dict(options["told"]) if "told" in options else None
    network = reopen_source(name, weights or options.get("weights"), weights_dir=paths.weights_dir, told=told)
    source = network.for_classes(dataset.classes)
    # the rows were made under the contract that the store records, whatever is declared now
    returns = recorded["source"].get("returns", LOGITS)
    output = recorded["source"].get("output", LOGITS_OUTPUT)
    spec = replace(source.spec, contract=replace(source.spec.contract, returns=returns), output=output)
    source = replace(source, spec=spec)
    origin = Origin(
        dataset,
        plan_from(recorded["plan"], str(store.path)),
        source,
        InputMap.from_dict(recorded["input"]),
    )
    about = source_identity(source.spec, source.weights_sha256, source.spec.n_classes)
    reopened = identity(about, origin.input_map, origin.plan, origin.dataset, top_k=store.top_k)
    # names may have changed with a path; contents are compared by sha256
    require_match(store.path, recorded, with_recorded_names(reopened, recorded))
    return origin


def open_dataset_of(store: Store, paths: Paths, *, target: str | None) -> Dataset:
    """The store's samples, in the order of its rows. If it has fewer than the target, that is the subset that
    --limit takes, or what remained after some were held out to choose the best epoch.

    Raises StoreMismatch if the target's samples have changed.
    """
    about = store.manifest.identity["target"]
    name = target or store.manifest.made_by.get("asked", {}).get("target") or about["name"]
    dataset = load_shared(parse_target(name), about["split"], paths=paths)
    for note in dataset.notes:
        log.warning(note)
    if about["n_samples"] < len(dataset):
        whole, dataset = dataset, dataset.limit(about["n_samples"])
        if dataset.content_sha256 != about["contents_sha256"]:  # not --limit's subset: some were held out
            dataset = whole.take(np.flatnonzero(np.isin(whole.ids, store.ids)))
    if dataset.content_sha256 != about["contents_sha256"]:
        raise StoreMismatch(
            f"{store.path}: the images of {name} have changed: their sha256 is "
            f"{dataset.content_sha256[:12]}, expected {about['contents_sha256'][:12]}; restore them, say "
            f"where they are with --target, or precompute again"
        )
    return dataset
