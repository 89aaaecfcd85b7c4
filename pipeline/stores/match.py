"""The store that a job's logits belong in, and the stores that serve a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cache import (
    ABSENT,
    Difference,
    Location,
    Store,
    StoreDamaged,
    StoreMismatch,
    differences,
    digest,
    find_stores,
    is_file,
    require_match,
)
from pipeline.data.datasets.dataset import Dataset
from pipeline.stores.alike import (
    PER_SAMPLE,
    first_strange_row,
    sentence,
    sound_stores,
    store_folder,
    stores_elsewhere,
    unmet_by_rows,
)
from pipeline.stores.fingerprint import identity, source_identity
from pipeline.stores.job import Job
from sskt.sources import InputMap, Source, kind_of, parse_source
from sskt.topk import row_width

log = logging.getLogger(__name__)

DENSE_BUDGET = 100_000_000_000  # bytes of one store beyond which only the top classes are kept
DEFAULT_TOP_K = 64


@dataclass(frozen=True, slots=True)
class Destination:
    """Where one source's logits belong."""

    path: Location
    fields: dict[str, Any]  # the fingerprint
    top_k: int | None  # None: all logits
    exists: bool

    @property
    def store(self) -> Store | None:
        """The store, if it is there."""
        return Store.open(self.path) if self.exists else None


def destination(job: Job, source: Source, input_map: InputMap, cache_dir: Location) -> Destination:
    """The store for a source: what `job.top_k` asks for; if it asks for nothing, the one that is there. A
    store of the same rows under another name is as good, and that is said.
    """
    spec = source.spec
    about = source_identity(spec, source.weights_sha256, spec.n_classes)
    folder = store_folder(cache_dir, job.dataset, spec.name)

    def of_form(top_k: int | None) -> Destination:
        fields = identity(about, input_map, job.plan, job.dataset, top_k=top_k)
        path = folder / f"{digest(fields)[:12]}.zarr"
        return Destination(path, fields, top_k, is_file(path / "zarr.json"))

    def or_alike(place: Destination) -> Destination:
        return place if place.exists else _alike(place, job, source, cache_dir) or place

    dense, wanted = of_form(None), job.top_k
    if wanted is None:
        nbytes = 2 * spec.n_classes * len(job.dataset) * job.views
        if dense.exists:
            return dense
        if there := [place for k in _top_ks_in(folder) if (place := of_form(k)).exists]:
            largest = max(there, key=lambda place: place.top_k or 0)
            log.info(
                f"{spec.name}: {largest.path} is there and holds the top {largest.top_k}; --top-k 0 keeps all"
            )
            return largest
        if (alike := or_alike(dense)).exists:
            return alike
        if nbytes <= DENSE_BUDGET:
            return dense
        log.info(
            f"{spec.name}: all {spec.n_classes} logits of {job.views} view(s) would take "
            f"{nbytes / 1e9:,.0f} GB, the top {DEFAULT_TOP_K} are kept; --top-k 0 keeps all"
        )
        wanted = DEFAULT_TOP_K
    if wanted == 0:
        return or_alike(dense)
    if row_width(wanted) >= spec.n_classes:
        log.info(f"{spec.name}: all {spec.n_classes} logits are kept, the top {wanted} would take no less")
        return or_alike(dense)
    return or_alike(of_form(wanted))


def _alike(place: Destination, job: Job, source: Source, cache_dir: Location) -> Destination | None:
    """A store of the very rows that belong in `place`, under another name; None if there is none."""
    dataset, name = job.dataset, source.spec.name
    here = sound_stores(store_folder(cache_dir, dataset, name))
    others = stores_elsewhere(cache_dir, dataset, name, source.weights_sha256)
    alike = [
        store
        for store in (*here, *others)
        if store.n_samples == len(dataset)
        and not unmet_by_rows(differences(store.manifest.identity, place.fields), store, dataset)
    ]
    if not alike:
        return None
    chosen = max(alike, key=lambda store: store.whole_views)
    log.info(sentence(chosen, place.fields))
    return Destination(chosen.path, chosen.manifest.identity, place.top_k, exists=True)


def _top_ks_in(folder: Location) -> Iterator[int]:
    """How many classes the top-k stores of a folder hold; a damaged one is passed over, and that is said."""
    for path in find_stores(folder):
        try:
            top_k = Store.open(path).top_k
        except StoreDamaged as damage:
            log.warning(f"{damage}; it is passed over")
            continue
        if top_k is not None:
            yield top_k


def matching_store(
    cache_dir: Location,
    dataset: Dataset,
    source_name: str,
    wanted: Callable[[Store], dict[str, Any]],
    *,
    weights_sha256: str | None,
) -> Store | None:
    """The store of `source_name` that serves `index`; None if there is no store at all.

    `wanted(store)` is this run's fingerprint; it is given the store for what the run itself cannot know (the
    weights of a source that is not on this machine; `weights_sha256` is theirs, if it is known). Stores of
    the same rows under another name come after those of this name, and that is said. Of stores that serve
    with different numbers of logits it is the one with most. Raises StoreMismatch if stores exist and none
    fits, for the one that differs least, or if some fit that were made from different weights.
    """
    stores = [Store.open(path) for path in find_stores(store_folder(cache_dir, dataset, source_name))]
    serving = [store for store in stores if not _unmet(store, wanted(store), dataset)]
    if not serving:
        others = stores_elsewhere(cache_dir, dataset, source_name, weights_sha256)
        candidates = [*stores, *others]
        serving = [store for store in candidates if not _unmet_by_rows(store, wanted(store), dataset)]
    if not serving:
        if stores:
            nearest = min(stores, key=lambda store: len(_unmet(store, wanted(store), dataset)))
            _refuse(nearest, wanted(nearest), dataset)
        return None
    if len({store.manifest.identity["source"]["weights_sha256"] for store in serving}) > 1:
        raise _ambiguous(source_name, serving)
    if len({digest(_made_of(store)) for store in serving}) > 1:
        raise _of_other_contracts(source_name, serving)
    chosen = max(serving, key=lambda store: (store.top_k or store.n_classes, store.whole_views))
    named = named_by(wanted(chosen), source_name)
    if _by_name(chosen, named):
        log.info(sentence(chosen, named))
    return chosen


def _unmet(store: Store, wanted: dict[str, Any], dataset: Dataset) -> list[Difference]:
    """The fields in which a store does not serve a run; none if it does."""
    unmet = differences(store.manifest.identity, wanted)
    is_subset = len(dataset) < store.n_samples and all(d.field in PER_SAMPLE for d in unmet)
    return [] if is_subset and first_strange_row(store, dataset) is None else unmet


def _unmet_by_rows(store: Store, wanted: dict[str, Any], dataset: Dataset) -> list[Difference]:
    """Those of them that its rows depend on."""
    return unmet_by_rows(differences(store.manifest.identity, wanted), store, dataset)


def named_by(wanted: dict[str, Any], source_name: str) -> dict[str, Any]:
    """A run's fingerprint with its own name of the source, and not the one that a store has."""
    return {**wanted, "source": {**wanted["source"], "name": parse_source(source_name).name}}


def _by_name(store: Store, wanted: dict[str, Any]) -> bool:
    """Whether names, and not a subset's labels, tell a store's fingerprint from a run's."""
    fields = {difference.field for difference in differences(store.manifest.identity, wanted)}
    whole = "target.n_samples" not in fields
    return bool(fields & {"target.name", "target.class_names_sha256", "source.name"}) or (
        whole and "target.labels_sha256" in fields
    )


def _made_of(store: Store) -> dict[str, Any]:
    """A source, whatever its name, and what it is shown."""
    parts = store.manifest.identity
    return {"source": {**parts["source"], "name": None}, "input": parts["input"]}


def _ambiguous(source_name: str, stores: list[Store]) -> StoreMismatch:
    """Networks of one name: which of them teaches is for the user to say."""
    said = "--source with its path" if kind_of(source_name).is_path else f"--weights {source_name}=FILE"
    made = [store.manifest.made_by for store in stores]
    made_from = ", ".join(
        f"{store.path} from {by.get('asked', {}).get('weights')} of {by.get('created')}"
        for store, by in zip(stores, made, strict=True)
    )
    return StoreMismatch(
        f"{source_name}: {len(stores)} stores serve this run, of networks with other weights ({made_from}); "
        f"say which with {said}, or remove the others with sskt cache prune"
    )


def _of_other_contracts(source_name: str, stores: list[Store]) -> StoreMismatch:
    """One network that was shown other inputs, or whose outputs were read otherwise."""
    first, second = (store.manifest.identity for store in stores[:2])
    pair = [{k: identity[k] for k in ("source", "input")} for identity in (first, second)]
    fields = ", ".join(
        f"{d.field} {d.stored} and {d.wanted}"
        for d in differences(*pair)
        if ABSENT not in (d.stored, d.wanted)
    )
    paths = ", ".join(str(store.path) for store in stores)
    return StoreMismatch(
        f"{source_name}: {len(stores)} stores serve this run, made by other contracts ({paths}"
        f"{'; ' if fields else ''}{fields}); say which with --contract {source_name}=KEY=VALUE,..., or "
        f"remove the others with sskt cache prune"
    )


def _refuse(store: Store, wanted: dict[str, Any], dataset: Dataset) -> None:
    """Raise StoreMismatch, naming the picture as well when contents are what differs."""
    try:
        require_match(store.path, store.manifest.identity, wanted)
    except StoreMismatch as mismatch:
        row = first_strange_row(store, dataset)
        if row is None:
            raise
        sample = f"{dataset.ids[row]} ({dataset.name_of(row)})"
        raise StoreMismatch(
            f"{mismatch}; the first sample without a row of its own is {sample}", mismatch.differences
        ) from None
