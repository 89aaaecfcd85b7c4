"""What is stored for a target's training split, and which of it teaches a run that names no source."""

from __future__ import annotations

from collections.abc import Iterable

from cache import Location, Store, find_stores
from pipeline.data import Dataset
from pipeline.stores import classes_of, holds, split_folder, stored_output, stores_elsewhere
from sskt.errors import RunError
from sskt.sources import (
    LOGITS_OUTPUT,
    MAP,
    POOLED,
    at_output,
    kind_of,
    network_of,
    output_kind,
    output_of,
)


def stored_sources(cache_dir: Location, dataset: Dataset) -> tuple[str, ...]:
    """The sources with a whole view of logits stored for a target split, in alphabetical order, except
    students of ours: those know a task's own labels, and teach only when named.
    """
    return teaching_unnamed(store for store in stores_with_views(cache_dir, dataset) if _holds_logits(store))


def stored_teachers(cache_dir: Location, dataset: Dataset) -> tuple[str, ...]:
    """The sources with a whole view stored for a target split that know its classes, in alphabetical order.
    For a run whose folder is missing, only the number of classes is checked.
    """
    stores = [store for store in stores_with_views(cache_dir, dataset) if _holds_logits(store)]
    able = [store for store in stores if store.n_classes == len(dataset.classes)]
    return tuple(sorted({source_name(store) for store in able if may_know(store, dataset.classes)}))


def teaching_unnamed(stores: Iterable[Store]) -> tuple[str, ...]:
    """The sources of stores that teach where none is named, in alphabetical order."""
    names = {source_name(store) for store in stores}
    return tuple(sorted(name for name in names if not kind_of(name).must_be_named))


def require_no_maps(sources: Iterable[str]) -> None:
    """Raise RunError for maps where a probe is to be fitted."""
    for name in sources:
        if output_kind(output_of(name)) == MAP:
            raise RunError(
                f"{name} is maps, and a probe reads logits or an embedding; name {network_of(name)} or "
                f"{at_output(network_of(name), POOLED)}"
            )


def _holds_logits(store: Store) -> bool:
    return stored_output(store) == LOGITS_OUTPUT


def stores_with_views(cache_dir: Location, dataset: Dataset) -> list[Store]:
    """The target split's stores with at least one whole view, also while more views are being added. If none
    holds these images, stores of the same images under another name.
    """
    by_name = [Store.open(path) for path in find_stores(split_folder(cache_dir, dataset))]
    usable = [store for store in by_name if store.whole_views]
    if any(holds(store, dataset) for store in usable):
        return usable
    elsewhere = stores_elsewhere(cache_dir, dataset, None)
    return [store for store in elsewhere if store.whole_views and holds(store, dataset)] or usable


def source_name(store: Store) -> str:
    """The name that a store records of its source, with the output that it holds."""
    return str(store.manifest.identity["source"]["name"])


def may_know(store: Store, classes: tuple[str, ...]) -> bool:
    """Whether a store's source has these classes; True if its classes are unknown."""
    weights = store.manifest.made_by.get("asked", {}).get("weights")
    by_weights = kind_of(source_name(store)).name_by_weights(weights) if weights else None
    known = classes_of(by_weights) if by_weights else None
    return known is None or known == classes
