"""Where the data, stores and sources of a run are: recorded when it starts, and given again if they moved.

A run is not tied to places: data are recognised by their contents and classes, sources by the sha256 of their
weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cache import Location, local_path, location
from pipeline.data import DatasetSpec, as_target, family_of, parse_target
from pipeline.runtime import Paths, coerce
from pipeline.train.config import TrainConfig, weights_name
from pipeline.train.run_folder import read_config, read_paths
from sskt.errors import RunError
from sskt.sources import Contract, asked_of, kind_of, kinds, parse_source

_LIVE = ("live", "write-through")  # labels that need the networks


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where a run's target, stores and sources are now."""

    target: str  # means the same from any folder
    paths: Paths


def paths_of(run: Location | str, **told: Any) -> Paths:
    """Where a run found its data_dir, cache_dir, weights and sources; `told` replaces some of them."""
    run = coerce.place(run, "run")
    read_config(run)  # names what is no run at all
    try:
        found = read_paths(run)
    except RunError:
        if {"data_dir", "cache_dir"} <= set(told):
            return Paths(**told)
        raise
    weights = {name: Path(path) for name, path in found["weights"].items()}
    contracts = {name: Contract.from_dict(parts) for name, parts in found.get("contracts", {}).items()}
    moved = _moved(found)
    recorded = Paths(Path(found["data_dir"]), location(found["cache_dir"]), weights, contracts, moved)
    return replace(recorded, **told)


def to_record(
    target: str, paths: Paths, sources: Sequence[str], finetune_from: Location | None
) -> dict[str, Any]:
    """The places of a new run, as plain data that means the same from any folder."""
    networks = [each for name in sources for each in asked_of(name)]
    # what lies at a URL is fetched again
    lying = {name: path for name in networks if "://" not in name and (path := _lies(name, paths))}
    return {
        "target": parse_target(target).as_given,
        "data_dir": str(paths.data_dir.absolute()),
        "cache_dir": str(paths.cache_dir.absolute()),
        "weights": {name: str(path.absolute()) for name, path in paths.weights.items()},
        "sources": {name: str(path.absolute()) for name, path in lying.items()},
        "contracts": {name: told.to_dict() for name, told in paths.contracts.items()},
        "finetune_from": finetune_from and str(finetune_from.absolute()),
    }


def pools_to_record(unlabelled: Sequence[str], labelled_list: str | None) -> dict[str, Any]:
    """The places of a run's pools and of the list of samples that keep their labels, in the form of
    `to_record`; empty for a run without.
    """
    found: dict[str, Any] = {}
    if unlabelled:
        found["unlabelled"] = [parse_target(name).as_given for name in unlabelled]
    if labelled_list is not None:
        found["labelled_list"] = str(Path(labelled_list).absolute())
    return found


def unlabelled_of(run: Location, config: TrainConfig, target: str, told: Sequence[str]) -> tuple[str, ...]:
    """Where the pools of a run are now: as `told`, else as recorded; the target's own are where `target` is.
    Raises RunError for a different number of pools than the run has, or a missing folder.
    """
    if told and len(told) != len(config.unlabelled):
        raise RunError(
            f"{run}: has {len(config.unlabelled)} pool(s) of samples without labels "
            f"({', '.join(config.unlabelled) or 'none'}), and --unlabelled names {len(told)}; name "
            f"each of them, in this order, or none"
        )
    if told:
        return tuple(as_target(name, videos=parse_target(target).holds_videos) for name in told)
    recorded = read_paths(run)["unlabelled"] if config.unlabelled else []
    names = []
    for began, was in zip(config.unlabelled, recorded, strict=True):
        own = parse_target(was).as_given == parse_target(_recorded_target(run) or config.target).as_given
        name = target if own else was
        spec = parse_target(name)
        if spec.is_own_folder and not family_of(spec).lies_there(spec, Path()):
            found = "is no folder" if family_of(spec).what == "folder" else "is not there"
            raise RunError(
                f"{run}: its samples without labels of {began} lay in {spec.root}, which {found} "
                f"any more; say where they are now with --unlabelled"
            )
        names.append(name)
    return tuple(names)


def labelled_list_of(run: Location, config: TrainConfig) -> Path:
    """The list of samples that keep their labels. Raises RunError if it is missing or has changed."""
    path = Path(read_paths(run)["labelled_list"])
    if not path.is_file() or weights_name(path) != config.labelled_list:
        raise RunError(
            f"{run}: was started with the labels that {config.labelled_list} names, which is not at {path} "
            f"any more; restore it"
        )
    return path


def initial_weights_of(run: Location, config: TrainConfig, paths: Paths) -> Path:
    """The file of the weights that a run started from, of one at a URL a copy. Raises RunError if it is
    missing or has changed.
    """
    place = location(read_paths(run).get("finetune_from") or "")
    path = paths.local(place)
    if not path.is_file() or weights_name(path) != config.finetune_from:
        raise RunError(
            f"{run}: was started from {config.finetune_from}, which is not at {place} any more; restore it, "
            f"or start again in another folder"
        )
    return path


def whereabouts_of(
    run: Location,
    config: TrainConfig,
    *,
    paths: Paths | None = None,
    target: str | None = None,
    sources: Sequence[str] = (),
) -> Whereabouts:
    """Where everything that a run needs is now: as recorded, except what the arguments say.

    Each of `sources`, names such as program:FILE, is that source of the run whose weights have its sha256.
    Raises RunError for data that are not where they were, with the option that says where they are, and for
    a target or source that is not the run's.
    """
    recorded = _recorded_target(run) or config.target
    paths = _with_recorded(run, paths) if paths else paths_of(run)
    if sources:
        named = map(paths.fetched(sources).lying, sources)
        found = {name: path for told in named for name, path in _recognised(run, config, told).items()}
        paths = replace(paths, moved={**paths.moved, **found})
    target = recorded if target is None else coerce.text(target, "target")
    _require_kind(run, parse_target(config.target), target)
    _require_there(run, parse_target(target), paths)
    return Whereabouts(parse_target(target).as_given, paths)


def require_classes(config: TrainConfig, found: tuple[str, ...], out: Location) -> None:
    """Raise RunError for data of other classes than a run was trained for."""
    if found != config.classes:
        raise RunError(
            f"{out}: was trained for {len(config.classes)} classes ({', '.join(config.classes[:3])}, ...), "
            f"its target now has {len(found)} ({', '.join(found[:3])}, ...); use the data it was trained for"
        )


def require_contents(
    run: Location, recorded: Mapping[str, str], now: Mapping[str, str], where: str, remedy: str
) -> None:
    """Raise RunError, naming the split, if data are not those that a run recorded; splits that it did not
    record are not compared.
    """
    for split, sha256 in now.items():
        was = recorded.get(split, sha256)
        if was != sha256:
            raise RunError(
                f"{run}: its contents.{split} was {was[:12]} and is {sha256[:12]} now: {where} holds other "
                f"data than it was trained with; {remedy}"
            )


def require_stores(run: Location, config: TrainConfig, paths: Paths) -> None:
    """Raise RunError if a run's stores, or the sources that it needs, are not where they were; the message
    names the option that says where they are.
    """
    asked = [each for name in config.sources for each in asked_of(name) if config.labels in _LIVE]
    gone = [name for name in asked if kind_of(name).is_path and _lies(name, paths) is None]
    if gone:
        raise RunError(
            f"{run}: its source {gone[0]} does not exist any more; say where it is now with --source "
            f"{kind_of(gone[0]).name_at('PATH')}"
        )
    lying = local_path(paths.cache_dir)
    if config.labels == "cached" and lying and not lying.is_dir():
        raise RunError(
            f"{run}: its stores lay in {lying}, which does not exist; say where they are now with --cache-dir"
        )


def _moved(found: Mapping[str, Any]) -> dict[str, Path]:
    """The recorded places of a run's programs and runs that still exist."""
    lying = {name: Path(path) for name, path in found.get("sources", {}).items()}
    return {name: path for name, path in lying.items() if path.exists()}


def _with_recorded(run: Location, paths: Paths) -> Paths:
    """`paths` with a run's recorded sources: in another folder, a relative name would mean another file."""
    try:
        return replace(paths, moved={**_moved(read_paths(run)), **paths.moved})
    except RunError:
        return paths


def _recorded_target(run: Location) -> str | None:
    """The recorded target; None in runs from before it was recorded, or whose record is lost."""
    try:
        found = read_paths(run).get("target")
    except RunError:
        return None
    return None if found is None else str(found)


def _lies(source: str, paths: Paths) -> Path | None:
    """The path of a source that is named by its path; None if it does not exist."""
    path = paths.moved.get(source) or kind_of(source).path(source)
    return path if path is not None and path.exists() else None


def _recognised(run: Location, config: TrainConfig, told: str) -> dict[str, Path]:
    """The sources of a run whose weights are those of `told`, with its path."""
    kind = kind_of(told)
    path = kind.path(told)
    if path is None:
        movable = " or ".join(f"{kind.prefix}:" for kind in kinds() if kind.is_path)
        raise RunError(
            f"--source {told} is settled by the run that --resume continues, except where a {movable} is "
            f"now; leave it out (--weights {told}=PATH says where its weights are)"
        )
    parse_source(told)
    sha256 = Paths().weights_sha256(told)
    if sha256 is None:
        raise RunError(f"--source {told}: there is no such file; say where it is now")
    alike = [name for name in config.sources if kind_of(name) is kind]
    found = {name: path.absolute() for name in alike if config.source_weights.get(name) == sha256}
    if not found:
        had = ", ".join(f"{name} ({config.source_weights.get(name, '')[:12]})" for name in alike) or "none"
        raise RunError(
            f"{run}: --source {told} has the sha256 {sha256[:12]}, which none of its {kind.prefix} "
            f"sources has ({had}); give the file that it was started with"
        )
    return found


def _require_kind(run: Location, began: DatasetSpec, target: str) -> None:
    told = parse_target(target)
    of_own = told.is_own_folder and told.family == began.family
    if not of_own and told.name != began.name:
        raise RunError(
            f"{run}: was trained on {began.name}, and --target {target} is another target; --target says "
            f"where that one's folder is now, and nothing else"
        )


def _require_there(run: Location, spec: DatasetSpec, paths: Paths) -> None:
    """Raise RunError for a missing folder, naming the option that says where it is."""
    if spec.is_own_folder and not family_of(spec).lies_there(spec, paths.data_dir):
        found = "not a folder" if family_of(spec).what == "folder" else "not there"
        raise RunError(
            f"{run}: its data are expected in {paths.data_dir / spec.root}, which is {found}; say where "
            f"they are with --target {spec.family}:PATH"
        )
    if not (spec.is_own_folder or family_of(spec).is_bundled or paths.data_dir.is_dir()):
        raise RunError(
            f"{run}: its data are expected in {paths.data_dir}, which is not a folder; say where they are "
            f"now with --data-dir"
        )
    lying = local_path(paths.cache_dir)
    if spec.holds_videos and lying and not lying.is_dir():
        raise RunError(
            f"{run}: its packed videos lay in {lying}, which does not exist; say where they are now "
            f"with --cache-dir"
        )
