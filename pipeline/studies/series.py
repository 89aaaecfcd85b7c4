"""Start, resume or skip a run, depending on what its folder holds, so that a series can be restarted."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cache import flatten
from pipeline.data import Augmentation, parse_target
from pipeline.precompute.run import precompute
from pipeline.runtime import Execution, Paths, World, join_world, mute_remarks
from pipeline.source_outputs import probe_among
from pipeline.train import (
    SETTLED_BY_DATA,
    TrainConfig,
    as_training,
    default_model,
    open_data,
    pools_of,
    read_config,
    read_probe,
    read_summary,
    require_learnable,
    require_sound,
    resolve,
    resume,
    splits_of,
    train,
    weights_name,
    with_places,
)
from sskt.errors import RunError
from sskt.methods import method_named
from sskt.sources import asked_of, kind_of
from sskt.students import Backbone, require_built_by_name

_OF_VERSION = ("ema_matched",)  # nobody chooses these; a run keeps those of the version that began it


def train_or_resume(target: str, out: Path, **settings: Any) -> dict[str, Any]:
    """The summary of the run in `out`: `train(target, out=out, **settings)` if there is none yet, `resume` it
    if it was stopped, else read it.

    A finished run's checkpoint is removed: nobody resumes from it, and a series would fill the disk. Raises
    RunError if the run in `out` has other settings, and whatever `train` and `resume` raise.
    """
    with join_world(settings["execution"].device) as world:
        if not world.broadcast((out / "config.json").is_file()):
            summary = train(target, out=out, **settings)
        else:
            _require_same(target, out, settings)
            finished = read_summary(out)
            how = {name: settings[name] for name in ("execution", "paths")}
            summary = finished or resume(out, **how)
        if world.is_first:
            (out / "last.pt").unlink(missing_ok=True)
        world.broadcast(value=True)  # wait until the first rank has written
    return summary


def pretext_or_resume(
    targets: str | Sequence[str],
    *,
    task: str,
    out: Path,
    model: str | None = None,
    paths: Paths,
    val_share: float | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """`pretext(targets, task=task, out=out, ...)` in the way of `train_or_resume`."""
    target, own = as_training(targets, task=task, model=model, paths=paths, val_share=val_share)
    return with_places(train_or_resume(target, out, paths=paths, **own, **settings), out)


def precompute_once(target: str, sources: Sequence[str], **settings: Any) -> None:
    """`precompute` these sources (see `networks_of`), then wait until every rank has finished its units."""
    with join_world(settings["execution"].device) as world:
        precompute([target], networks_of(sources), **settings)
        world.broadcast(value=True)


def networks_of(sources: Sequence[str]) -> tuple[str, ...]:
    """These sources, and in place of a probe those that it is fitted on. Raises RunError for a probe that
    names none.
    """
    for name in sources:
        if not asked_of(name):
            raise RunError(
                f"{name} is fitted on whatever is stored, and a series says what it trains on; name its "
                f"sources, such as {name}:imagenet+places365"
            )
    return tuple(dict.fromkeys(each for name in sources for each in asked_of(name)))


def check_settings(target: str, **settings: Any) -> None:
    """Raise RunError for settings of `train_or_resume` that no run of this target can have, as far as they
    show without data and networks.
    """
    config = _planned(target, **settings)
    if not config.is_own:
        require_built_by_name(config.model)
    require_sound(config.sized(1))
    require_learnable(config)


def matches(target: str, out: Path, **settings: Any) -> bool:
    """Whether the run in `out` has the settings `train_or_resume` would use; its data are not compared."""
    return _first_difference(out, _expected(target, **settings)) is None


def _planned(
    target: str,
    *,
    execution: Execution,
    paths: Paths | None = None,  # noqa: ARG001 - so that it takes what `train_or_resume` takes
    augmentation: Augmentation | None = None,
    model: str | Backbone | None = None,
    **settings: Any,
) -> TrainConfig:
    """The config of a run before its data and sources are opened; of its sources probes come last, as `train`
    records them.
    """
    config = resolve(
        target,
        execution=execution,
        world=World.from_environment(),
        augmentation=augmentation or Augmentation(),
        model=model or default_model(target, settings.get("method", "sskt")),
        **settings,
    )
    return replace(config, sources=tuple(sorted(config.sources, key=lambda name: kind_of(name).is_fitted)))


def _expected(target: str, *, paths: Paths, **settings: Any) -> dict[str, Any]:
    """What `train` would write into config.json, as far as known without data and networks.

    Leaves out what the caller lets `train` choose (sources, labels, views), and digests of source weights
    that are not on this machine.
    """
    config = _planned(target, **settings)
    left_out = [*SETTLED_BY_DATA, *_OF_VERSION]
    sized = config.sized(1).to_dict()
    left_out += [name for name, value in config.to_dict().items() if sized[name] != value]
    expected = {name: value for name, value in config.to_dict().items() if name not in left_out}
    if config.val_share is None and not parse_target(target).is_own_folder:
        expected |= {"val_share": 0.0, "chosen_on": "test"}
    if config.sources:
        expected["sources"] = config.sources
    if method_named(config.method).needs and config.labels != "auto":
        expected["labels"] = config.labels
    for name in ("views", "labelled_share"):
        if (said := getattr(config, name)) is not None:
            expected[name] = said
    with mute_remarks():
        expected["unlabelled"] = pools_of(config, paths)
    expected["labelled_list"] = config.labelled_list and weights_name(Path(config.labelled_list))
    contracts = {name: paths.contract_of(name) for name in config.sources}
    if declared := {name: contract.to_dict() for name, contract in contracts.items() if contract is not None}:
        expected["contracts"] = declared
    digests = {name: paths.weights_sha256(name) for name in config.sources}
    if local := {name: sha256 for name, sha256 in digests.items() if sha256}:
        expected["source_weights"] = local
    return expected


def _require_same(target: str, out: Path, settings: Mapping[str, Any]) -> None:
    """Raise RunError, naming the first setting in which the run in `out` differs."""
    config = _planned(target, **settings)
    with mute_remarks():
        splits = splits_of(config, settings["paths"])
    expected = _expected(target, **settings) | {
        "classes": splits.train.classes,
        "contents": splits.contents(),
        "val_share": splits.val_share,
        "chosen_on": splits.chosen_on,
    }
    if different := _first_difference(out, expected):
        name, actual, wanted = different
        remedy = f"add --student-amp {actual}, or choose" if name == "amp" else "choose"
        raise RunError(
            f"{out}: was started with {name} {actual}, this series has {wanted}; {remedy} another --out"
        )
    if probe_among(config.sources) and (probe := read_probe(out)) is not None:
        with mute_remarks(), join_world(settings["execution"].device) as world:
            how = {name: settings[name] for name in ("execution", "paths")}
            open_data(config, world=world, probe=probe, **how)  # refuses other stores than it was fitted on


def _first_difference(out: Path, expected: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """The first setting of the run in `out` that differs from `expected`, and both values."""
    actual = dict(flatten(TrainConfig.from_dict(read_config(out), str(out / "config.json")).to_dict()))
    wanted = dict(flatten(json.loads(json.dumps(expected))))  # tuples as JSON has them
    for name, value in wanted.items():
        if actual.get(name) != value:
            return name, _short(actual.get(name)), _short(value)
    return None


def _short(value: Any) -> str:
    return textwrap.shorten(str(value), 100, placeholder="...")
