"""Open sources by name, under the contract that the user and the source's file declare."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace

from cache import Store
from pipeline.runtime import Paths
from sskt.sources import (
    CLIP,
    Contract,
    Source,
    SourceSpec,
    kind_of,
    network_of,
    open_network,
    open_output,
    output_of,
    parse_source,
)

log = logging.getLogger(__name__)


def open_named(names: Iterable[str], paths: Paths) -> dict[str, Source]:
    """Open sources by name with the weights and the contracts that `paths` has for them, each network once,
    however many of its outputs are named; log what is declared and what is assumed. Raises what
    `open_source` raises.
    """
    networks: dict[tuple[object, ...], Source] = {}
    opened = {}
    for name in dict.fromkeys(names):
        weights, told, lying = paths.weights_of(name), paths.contract_of(name), paths.lying(name)
        recorded = network_of(parse_source(name).name)
        key = (network_of(lying), weights, told)
        is_new = key not in networks
        if is_new:
            network = open_network(lying, weights=weights, weights_dir=paths.weights_dir, told=told)
            # a program whose file has moved keeps its name
            networks[key] = replace(network, spec=replace(network.spec, name=recorded))
        opened[name] = source = open_output(networks[key], output_of(name))
        if is_new:
            _log_declared(source, name)
    return opened


def _log_declared(source: Source, name: str) -> None:
    for note in source.notes:
        log.warning(note)
    if source.declared is not None:
        log.warning(source.declared.sentence(name))
        for remark in source.declared.remarks:
            log.warning(remark)


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
        seen = stored["input"]
        frames = seen.get("frames") or {}
        mean, std = (tuple(seen[field]) for field in ("mean", "std"))
        spec = replace(
            spec,
            reads_clips=frames.get("kind") == CLIP,
            # one that was trained on clips' frames sees its own size, others twice that
            sees_student_frames=kind_of(name).sees_target_size
            and bool(frames)
            and seen["side_px"] == stored["plan"]["side_px"],
            mean=mean,
            std=std,
        )
    return spec.under(contract_in_force(name, paths, store))


def classes_of(source: str) -> tuple[str, ...] | None:
    """The class names of a source of the user's own; None unless it is a run whose folder exists."""
    classes = parse_source(source).contract.classes if kind_of(source).is_path else None
    return classes if isinstance(classes, tuple) else None
