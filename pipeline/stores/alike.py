"""Find stores of the same images and the same networks under other names.

A row depends on the images, their ids, the plan, the input map and the network's weights. Names of folders,
classes and files are recorded for messages only, and no row depends on the labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from typing import Any

import numpy as np

from cache import CacheError, Difference, Location, Store, StoreMismatch, differences, find_stores, subfolders
from pipeline.data import Dataset, path_families, path_family, target_slug
from sskt.sources import LOGITS_OUTPUT, MAP, kind_of, output_kind, parse_source, source_slug

# fields that also differ for a subset of a store's samples, which is checked row by row
_PER_SAMPLE = ("target.n_samples", "target.contents_sha256", "target.labels_sha256")
_ONLY_NAMES = ("target.name", "target.class_names_sha256", "target.labels_sha256", "source.name")


def store_folder(cache_dir: Location, dataset: Dataset, source_name: str) -> Location:
    """The folder of one source's stores for one target split."""
    return split_folder(cache_dir, dataset) / source_slug(source_name)


def split_folder(cache_dir: Location, dataset: Dataset) -> Location:
    """The folder of one target split's stores."""
    return cache_dir / target_slug(dataset.target) / dataset.split


def stores_elsewhere(
    cache_dir: Location, dataset: Dataset, source_name: str | None, weights_sha256: str | None = None
) -> Iterator[Store]:
    """Stores outside this name's own folder that may hold the same images: those of `source_name`, or of a
    file with these weights under another name; if `source_name` is None, those of any source.

    Stores that cannot be opened are skipped, since the user did not name them.
    """
    folders = [split_folder(cache_dir, dataset)] if source_name is not None else []
    target_folder = target_slug(dataset.target)
    if path_family(dataset.target) is not None:  # the same images may be a folder, a list or shards
        own = tuple(f"{family.name}-" for family in path_families())
        relatives = [folder for folder in subfolders(cache_dir) if folder.name.startswith(own)]
        folders += [folder / dataset.split for folder in relatives if folder.name != target_folder]
    own_folder = None if source_name is None else store_folder(cache_dir, dataset, source_name)
    for folder in folders:
        for store in sound_stores(folder):
            is_elsewhere = store.path.parent != own_folder
            if is_elsewhere and (source_name is None or _is_source(store, source_name, weights_sha256)):
                yield store


def sound_stores(folder: Location) -> Iterator[Store]:
    """The stores below a folder, skipping those that cannot be opened."""
    for path in find_stores(folder):
        with suppress(CacheError):
            yield Store.open(path)


def stored_output(store: Store) -> str:
    """Which of its source's outputs a store holds, as `sskt.sources.source` writes it."""
    return str(store.manifest.identity["source"].get("output", LOGITS_OUTPUT))


def holds_maps(store: Store) -> bool:
    """Whether a store holds the maps of a layer."""
    return output_kind(stored_output(store)) == MAP


def unmet_fields(store: Store, wanted: dict[str, Any], dataset: Dataset) -> list[Difference]:
    """The fields in which `store` differs from the fingerprint `wanted`; empty if it serves, also when
    `dataset` is a subset of its samples.
    """
    return _unless_subset(differences(store.manifest.identity, wanted), store, dataset)


def unmet_row_fields(store: Store, wanted: dict[str, Any], dataset: Dataset) -> list[Difference]:
    """Like `unmet_fields`, but only the fields that rows depend on: names and labels may differ."""
    unmet = differences(store.manifest.identity, wanted)
    return _unless_subset([d for d in unmet if d.field not in _ONLY_NAMES], store, dataset)


def first_unmatched_position(store: Store, dataset: Dataset) -> int | None:
    """The first position in the dataset whose id the store lacks, or has with another image; else None."""
    try:
        rows = store.positions_of(dataset.ids)
    except StoreMismatch:
        return int(np.flatnonzero(~np.isin(dataset.ids, store.ids))[0])
    unmatched = np.flatnonzero((store.contents[rows] != dataset.contents).any(axis=1))
    return int(unmatched[0]) if len(unmatched) else None


def holds(store: Store, dataset: Dataset) -> bool:
    """Whether a store has a row for each image of the dataset, with the same contents."""
    same = store.manifest.identity["target"]["contents_sha256"] == dataset.content_sha256
    return same or (len(dataset) < store.n_samples and first_unmatched_position(store, dataset) is None)


def with_recorded_names(identity: dict[str, Any], recorded: dict[str, Any]) -> dict[str, Any]:
    """A fingerprint with its names, and the labels' sha256, replaced by those that a store recorded."""
    renamed = deepcopy(identity)
    for field in _ONLY_NAMES:
        part, _, name = field.partition(".")
        renamed[part][name] = recorded[part][name]
    return renamed


def sentence(store: Store, wanted: dict[str, Any]) -> str:
    """The message about a store that serves under another name."""
    stored = store.manifest.identity
    images = "the same images"
    if stored["target"]["name"] != wanted["target"]["name"]:
        images += " under another name"
    if stored["target"]["class_names_sha256"] != wanted["target"]["class_names_sha256"]:
        images += ", whose classes had other names"
    elif stored["target"]["labels_sha256"] != wanted["target"]["labels_sha256"]:
        images += ", which had other labels"
    name = stored["source"]["name"]
    network = "" if name == wanted["source"]["name"] else f", seen by the same network under the name {name}"
    return f"the rows are those of {store.path}: {images}{network}"


def _unless_subset(unmet: list[Difference], store: Store, dataset: Dataset) -> list[Difference]:
    """`unmet`, or nothing if the dataset is a subset of the store's samples and differs in nothing else."""
    is_subset = len(dataset) < store.n_samples and all(d.field in _PER_SAMPLE for d in unmet)
    return [] if is_subset and first_unmatched_position(store, dataset) is None else unmet


def _is_source(store: Store, name: str, weights_sha256: str | None) -> bool:
    stored, spec = store.manifest.identity["source"], parse_source(name)
    if stored_output(store) != spec.output:
        return False
    if stored["name"] == spec.name:
        return True
    kind = kind_of(name)  # renaming a file also renames a source that is named by its path
    may_be_renamed = kind.is_path and stored["name"].startswith(f"{kind.prefix}:")
    return may_be_renamed and stored["weights_sha256"] == weights_sha256
