"""The store that a job's logits belong in, and the stores that serve a run."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cache import (
    ABSENT,
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
from pipeline.data import Dataset
from pipeline.stores.alike import (
    first_unmatched_position,
    sentence,
    sound_stores,
    store_folder,
    stores_elsewhere,
    unmet_fields,
    unmet_row_fields,
)
from pipeline.stores.fingerprint import identity, source_identity
from pipeline.stores.job import Job
from sskt.errors import RunError
from sskt.sources import LOGITS_OUTPUT, InputMap, Source, kind_of, network_of, parse_source
from sskt.topk import row_width

log = logging.getLogger(__name__)

DENSE_BUDGET = 100_000_000_000  # bytes per store; above it only the top classes are stored
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
        """The store, if it exists."""
        return Store.open(self.path) if self.exists else None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A store that may serve a run, and the fingerprint that it must have to do so."""

    store: Store
    wanted: dict[str, Any]


def destination(job: Job, source: Source, input_map: InputMap, cache_dir: Location) -> Destination:
    """The store that a source's rows belong in: the form that `job.top_k` sets, or if it is None, an
    existing store. A store of the same rows under another name will do, and is logged.

    Raises RunError for the top k of an embedding.
    """
    spec = source.spec
    about = source_identity(spec, source.weights_sha256, spec.n_classes)
    folder = store_folder(cache_dir, job.dataset, spec.name)

    def of_form(top_k: int | None) -> Destination:
        fields = identity(about, input_map, job.plan, job.dataset, top_k=top_k)
        path = folder / f"{digest(fields)[:12]}.zarr"
        return Destination(path, fields, top_k, is_file(path / "zarr.json"))

    def or_alike(place: Destination, *, alone: bool = False) -> Destination:
        return place if place.exists else _alike(place, job, source, cache_dir, alone=alone) or place

    dense, wanted = of_form(None), job.top_k
    if spec.output != LOGITS_OUTPUT:
        if wanted:
            raise RunError(
                f"--top-k {wanted} keeps the largest logits, and {spec.name} has none; leave it out, or "
                f"store the logits by a command of their own"
            )
        return or_alike(dense)
    if wanted is None:
        nbytes = 2 * spec.n_classes * len(job.dataset) * job.views
        if dense.exists:
            return dense
        below = find_stores(folder)
        existing = [place for k in _top_ks_in(below) if (place := of_form(k)).exists]
        if existing:
            largest = max(existing, key=lambda place: place.top_k or 0)
            log.info(
                f"{spec.name}: {largest.path} is there and holds the top {largest.top_k}; --top-k 0 keeps all"
            )
            return largest
        if (alike := or_alike(dense, alone=not below)).exists:
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


def _alike(
    place: Destination, job: Job, source: Source, cache_dir: Location, *, alone: bool
) -> Destination | None:
    """A store of the same rows as belong in `place`, under another name; None if there is none. `alone`: no
    store lies beside `place`.
    """
    dataset, name = job.dataset, source.spec.name
    by_name = () if alone else sound_stores(store_folder(cache_dir, dataset, name))
    elsewhere = stores_elsewhere(cache_dir, dataset, name, source.weights_sha256)
    alike = [
        store
        for store in (*by_name, *elsewhere)
        if store.n_samples == len(dataset) and not unmet_row_fields(store, place.fields, dataset)
    ]
    if not alike:
        return None
    chosen = max(alike, key=lambda store: store.whole_views)
    log.info(sentence(chosen, place.fields))
    return Destination(chosen.path, chosen.manifest.identity, place.top_k, exists=True)


def _top_ks_in(paths: Sequence[Location]) -> Iterator[int]:
    """How many classes each top-k store of these holds; skips damaged ones with a warning."""
    for path in paths:
        try:
            top_k = Store.open(path).top_k
        except StoreDamaged as damage:
            log.warning(f"{damage}; it is passed over")
            continue
        if top_k is not None:
            yield top_k


def matching_store(
    dataset: Dataset, source_name: str, by_name: Sequence[Candidate], elsewhere: Iterable[Candidate]
) -> Store | None:
    """The store of `source_name` that serves a run on `dataset`; None if nothing serves and `by_name` is
    empty.

    `by_name` are the stores of this source and target. `elsewhere` are stores that may hold the same rows
    under other names; they are tried only if none of `by_name` serves, and such a choice is logged. Of stores
    that hold different numbers of logits, the one with the most is chosen. Raises StoreMismatch if stores of
    this name exist and nothing serves, about the one that differs least, or if stores made from different
    weights or under different contracts serve.
    """
    serving = [each for each in by_name if not unmet_fields(each.store, each.wanted, dataset)]
    if not serving:
        candidates = [*by_name, *elsewhere]
        serving = [each for each in candidates if not unmet_row_fields(each.store, each.wanted, dataset)]
    if not serving:
        if by_name:
            nearest = min(by_name, key=lambda each: len(unmet_fields(each.store, each.wanted, dataset)))
            _refuse(nearest.store, nearest.wanted, dataset)
        return None
    stores = [each.store for each in serving]
    if len({store.manifest.identity["source"]["weights_sha256"] for store in stores}) > 1:
        raise _ambiguous_weights(source_name, stores)
    if len({digest(_source_and_input(store)) for store in stores}) > 1:
        raise _ambiguous_contracts(source_name, stores)
    chosen = max(serving, key=lambda each: (each.store.top_k or each.store.n_classes, each.store.whole_views))
    wanted = _with_source_name(chosen.wanted, source_name)
    if _differs_by_name(chosen.store, wanted):
        log.info(sentence(chosen.store, wanted))
    return chosen.store


def _with_source_name(wanted: dict[str, Any], source_name: str) -> dict[str, Any]:
    """A run's fingerprint with the run's own name for the source instead of the store's."""
    return {**wanted, "source": {**wanted["source"], "name": parse_source(source_name).name}}


def _differs_by_name(store: Store, wanted: dict[str, Any]) -> bool:
    """Whether a store's fingerprint differs from a run's in names, and not just in a subset's labels."""
    fields = {difference.field for difference in differences(store.manifest.identity, wanted)}
    whole = "target.n_samples" not in fields
    return bool(fields & {"target.name", "target.class_names_sha256", "source.name"}) or (
        whole and "target.labels_sha256" in fields
    )


def _source_and_input(store: Store) -> dict[str, Any]:
    """The source, regardless of its name, and its input map."""
    parts = store.manifest.identity
    return {"source": {**parts["source"], "name": None}, "input": parts["input"]}


def _ambiguous_weights(source_name: str, stores: list[Store]) -> StoreMismatch:
    """Different networks under one name: the user must say which one to use."""
    by_weights = f"--weights {network_of(source_name)}=FILE"
    option = "--source with its path" if kind_of(source_name).is_path else by_weights
    made = [store.manifest.made_by for store in stores]
    made_from = ", ".join(
        f"{store.path} from {by.get('asked', {}).get('weights')} of {by.get('created')}"
        for store, by in zip(stores, made, strict=True)
    )
    return StoreMismatch(
        f"{source_name}: {len(stores)} stores serve this run, of networks with other weights ({made_from}); "
        f"say which with {option}, or remove the others with sskt cache prune"
    )


def _ambiguous_contracts(source_name: str, stores: list[Store]) -> StoreMismatch:
    """One network that was given different inputs, or whose outputs were interpreted differently."""
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
    """Raise StoreMismatch, naming the first differing image if contents differ."""
    try:
        require_match(store.path, store.manifest.identity, wanted)
    except StoreMismatch as mismatch:
        position = first_unmatched_position(store, dataset)
        if position is None:
            raise
        sample = f"{dataset.ids[position]} ({dataset.name_of(position)})"
        raise StoreMismatch(
            f"{mismatch}; the first sample without a row of its own is {sample}", mismatch.differences
        ) from None
