"""A source opened by name, with what the user and its file say of it, and that said in one line."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from cache import Store
from pipeline.runtime import Paths
from sskt.sources import CLIP, Contract, Source, SourceSpec, kind_of, open_source, parse_source

log = logging.getLogger(__name__)


def open_named(name: str, paths: Paths) -> Source:
    """Open the source with the weights and the contract that `paths` has for it; log what it declares and
    what is assumed. Raises what `open_source` raises.
    """
    source = open_source(
        paths.lying(name),
        weights=paths.weights.get(name),
        weights_dir=paths.weights_dir,
        told=paths.told(name),
    )
    # a program that lies elsewhere by now keeps its name
    source = replace(source, spec=replace(source.spec, name=parse_source(name).name))
    for note in source.notes:
        log.warning(note)
    if source.declared is not None:
        log.warning(source.declared.sentence(name))
        for remark in source.declared.remarks:
            log.warning(remark)
    return source


def contract_record(source: Source) -> dict[str, Any]:
    """What a store records beside its fingerprint: the contract that was declared, and the user's part."""
    if source.declared is None:
        return {}
    parts = {"contract": source.declared.contract.to_dict(), "told": source.declared.told.to_dict()}
    return {name: part for name, part in parts.items() if part}


def contract_in_force(name: str, paths: Paths, store: Store | None) -> Contract:
    """What is declared of source `name` for a run on `store`: by the user now or when the store was made,
    by the program's file where it is at hand, and else as the store recorded it.

    Published weights declare nothing here but what a user says of them. Raises SourceError for a
    declaration that cannot be read.
    """
    asked = store.manifest.made_by.get("asked", {}) if store is not None else {}
    told = (paths.told(name) or Contract()).over(Contract.from_dict(asked.get("told", {})))
    recorded = Contract.from_dict(asked.get("contract", {}))
    return kind_of(name).declared(paths.lying(name), told).over(recorded)


def spec_on_store(name: str, paths: Paths, store: Store) -> SourceSpec:
    """The source as a run on `store` wants it: under the contract in force, and for what is the network's own
    as the store has it, since its weights' sha256 says that it is the same network.
    """
    spec = replace(parse_source(paths.lying(name)), name=parse_source(name).name)
    stored = store.manifest.identity
    if not spec.n_classes:
        frames = stored["input"].get("frames") or {}
        mean, std = (tuple(stored["input"][field]) for field in ("mean", "std"))
        spec = replace(spec, reads_clips=frames.get("kind") == CLIP, mean=mean, std=std)
    return spec.under(contract_in_force(name, paths, store))


def classes_of(source: str) -> tuple[str, ...] | None:
    """The classes, by name, that a source of the user's own is known to know; None unless it is a run whose
    folder is there.
    """
    classes = parse_source(source).contract.classes if kind_of(source).is_path else None
    return classes if isinstance(classes, tuple) else None
