"""Open sources by name, under the contract that the user and the source's file declare."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from cache import Store
from pipeline.runtime import Paths
from sskt.sources import CLIP, Contract, Source, SourceSpec, kind_of, open_source, parse_source

log = logging.getLogger(__name__)


def open_named(name: str, paths: Paths) -> Source:
    """Open a source with the weights and the contract that `paths` has for it; log what is declared and what
    is assumed. Raises what `open_source` raises.
    """
    source = open_source(
        paths.lying(name),
        weights=paths.weights_of(name),
        weights_dir=paths.weights_dir,
        told=paths.contract_of(name),
    )
    # a program whose file has moved keeps its name
    source = replace(source, spec=replace(source.spec, name=parse_source(name).name))
    for note in source.notes:
        log.warning(note)
    if source.declared is not None:
        log.warning(source.declared.sentence(name))
        for remark in source.declared.remarks:
            log.warning(remark)
    return source


def contract_record(source: Source) -> dict[str, Any]:
    """What a store records beside its fingerprint: the declared contract, and the user's part of it."""
    if source.declared is None:
        return {}
    parts = {"contract": source.declared.contract.to_dict(), "told": source.declared.told.to_dict()}
    return {name: part for name, part in parts.items() if part}


def contract_in_force(name: str, paths: Paths, store: Store | None) -> Contract:
    """The contract of source `name` for a run on `store`: what the user declares now or declared when the
    store was made, then what the program's file declares if it is present, then what the store recorded.

    Published weights have only what the user declares. Raises SourceError for a declaration that cannot be
    read.
    """
    options = store.manifest.made_by.get("asked", {}) if store is not None else {}
    told = (paths.contract_of(name) or Contract()).over(Contract.from_dict(options.get("told", {})))
    recorded = Contract.from_dict(options.get("contract", {}))
    return kind_of(name).declared(paths.lying(name), told).over(recorded)


def spec_on_store(name: str, paths: Paths, store: Store) -> SourceSpec:
    """The source's spec for a run on `store`, under the contract in force. If the network's own properties
    cannot be read from a file, the store's record is used: its weights' sha256 identifies the network.
    """
    spec = replace(parse_source(paths.lying(name)), name=parse_source(name).name)
    stored = store.manifest.identity
    if not spec.n_classes:
        frames = stored["input"].get("frames") or {}
        mean, std = (tuple(stored["input"][field]) for field in ("mean", "std"))
        spec = replace(spec, reads_clips=frames.get("kind") == CLIP, mean=mean, std=std)
    return spec.under(contract_in_force(name, paths, store))


def classes_of(source: str) -> tuple[str, ...] | None:
    """The class names of a source of the user's own; None unless it is a run whose folder exists."""
    classes = parse_source(source).contract.classes if kind_of(source).is_path else None
    return classes if isinstance(classes, tuple) else None
