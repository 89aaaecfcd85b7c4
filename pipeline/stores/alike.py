"""Stores of the same images and the same networks under other names.

A row depends on the images, their ids, the plan, the input map and the network's weights; names of folders,
classes and files are kept for messages, and labels for nothing that a row says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from typing import Any

import numpy as np

from cache import CacheError, Difference, Location, Store, StoreMismatch, find_stores, subfolders
from pipeline.data.datasets.dataset import Dataset
from pipeline.data.datasets.registry import path_family, target_slug
from sskt.sources import kind_of, parse_source, source_slug

PER_SAMPLE = (
    "target.n_samples",
    "target.contents_sha256",
    "target.labels_sha256",
)  # a subset is checked row by row
_ONLY_NAMES = ("target.name", "target.class_names_sha256", "target.labels_sha256", "source.name")


def store_folder(cache_dir: Location, dataset: Dataset, source_name: str) -> Location:
    """Where the stores of one source's logits for one target split lie."""
    return split_folder(cache_dir, dataset) / source_slug(source_name)


def split_folder(cache_dir: Location, dataset: Dataset) -> Location:
    """Where the stores of one target split lie."""
    return cache_dir / target_slug(dataset.target) / dataset.split


def stores_elsewhere(
    cache_dir: Location, dataset: Dataset, source_name: str | None, weights_sha256: str | None = None
) -> Iterator[Store]:
    """Stores that may be of the same images under another name, and not where this name's stores lie: of
    `source_name`, or of a file with these weights under another name; of any source where that is None.

    One that cannot be opened is of another name than was asked for, and is passed over.
    """
    folders = [split_folder(cache_dir, dataset)] if source_name is not None else []
    own = target_slug(dataset.target)
    family = path_family(dataset.target)
    if family is not None:
        alike = [folder for folder in subfolders(cache_dir) if folder.name.startswith(f"{family.name}-")]
        folders += [folder / dataset.split for folder in alike if folder.name != own]
    looked_at = None if source_name is None else store_folder(cache_dir, dataset, source_name)
    for folder in folders:
        for store in sound_stores(folder):
            is_here = store.path.parent == looked_at
            if not is_here and (source_name is None or _is_source(store, source_name, weights_sha256)):
                yield store


def sound_stores(folder: Location) -> Iterator[Store]:
    """The stores below a folder, but for those that cannot be opened."""
    for path in find_stores(folder):
        with suppress(CacheError):
            yield Store.open(path)


def unmet_by_rows(unmet: list[Difference], store: Store, dataset: Dataset) -> list[Difference]:
    """Of the fields in which a store does not serve a run, those that its rows depend on: a subset of its
    samples is served, too.
    """
    unmet = [difference for difference in unmet if difference.field not in _ONLY_NAMES]
    is_subset = len(dataset) < store.n_samples and all(d.field in PER_SAMPLE for d in unmet)
    return [] if is_subset and first_strange_row(store, dataset) is None else unmet


def first_strange_row(store: Store, dataset: Dataset) -> int | None:
    """The first index row that the store has no row for, or another picture under its id."""
    try:
        rows = store.positions_of(dataset.ids)
    except StoreMismatch:
        return int(np.flatnonzero(~np.isin(dataset.ids, store.ids))[0])
    strange = np.flatnonzero((store.contents[rows] != dataset.contents).any(axis=1))
    return int(strange[0]) if len(strange) else None


def holds(store: Store, dataset: Dataset) -> bool:
    """Whether a store has a row for each of these very images."""
    same = store.manifest.identity["target"]["contents_sha256"] == dataset.content_sha256
    return same or (len(dataset) < store.n_samples and first_strange_row(store, dataset) is None)


def as_named(identity: dict[str, Any], recorded: dict[str, Any]) -> dict[str, Any]:
    """A fingerprint with the names that a store recorded."""
    renamed = deepcopy(identity)
    for field in _ONLY_NAMES:
        part, _, name = field.partition(".")
        renamed[part][name] = recorded[part][name]
    return renamed


def sentence(store: Store, wanted: dict[str, Any]) -> str:
    """What is said of a store that serves under another name."""
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


def _is_source(store: Store, name: str, weights_sha256: str | None) -> bool:
    stored, spec = store.manifest.identity["source"], parse_source(name)
    if stored["name"] == spec.name:
        return True
    kind = kind_of(name)  # files are renamed, and with them the sources that are named by their path
    may_be_renamed = kind.is_path and stored["name"].startswith(f"{kind.prefix}:")
    return may_be_renamed and stored["weights_sha256"] == weights_sha256
