"""A run's settings by the names of `pipeline.train.train`: of a new run once they are resolved, and of a recorded
run as few as repeat it.
"""

from __future__ import annotations

import json
import logging
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from pipeline.data import NO_POOL, Augmentation, parse_target
from pipeline.runtime import Execution, Paths, World, choose_execution, coerce
from pipeline.train.backbone import choose_clip_mean, default_model
from pipeline.train.config import Settings, TrainConfig, weights_name
from pipeline.train.method import readers_of
from pipeline.train.resolve import resolve
from pipeline.train.run_folder import read_paths
from pipeline.train.whereabouts import labelled_list_of, paths_of, unlabelled_of
from sskt.errors import RunError
from sskt.normalise import RELEASED_MEAN
from sskt.sources import asked_of, kind_of, to_told
from sskt.students import PRETEXTS

log = logging.getLogger(__name__)

# what others depend on comes first, so that a default which follows from it is not taken for a choice
_DECISIVE = ("schedule", "optimizer", "primary_loss", "aux_loss", "graph_logits", "epochs")
_OF_SCHEDULE = {
    "milestones": ("multistep",),
    "gamma": ("multistep", "plateau"),
    "patience": ("plateau",),
    "warm_up": ("trapezoid",),
    "cool_down": ("trapezoid",),
}
_ABOUT = ("target", "model", "seed", "limit", "eval_every")  # fields of a config that are no `Settings`
_SETTLED = ("labels", "views", "labelled_share")  # recorded as they came out; None: nothing to repeat


def resolved_settings(
    target: str,
    *,
    model: str | None = None,
    augmentation: Augmentation | None = None,
    execution: Execution | None = None,
    seed: int = 0,
    limit: int | None = None,
    eval_every: int = 1,
    finetune_from: Path | str | None = None,
    **settings: Unpack[Settings],
) -> dict[str, Any]:
    """What `train` with the same arguments would do, as far as it is known before data and sources are opened:
    a value for each setting that the run reads, by its name in config.json. None: the data will settle it.

    Raises RunError for what `train` would refuse without looking at data.
    """
    target = coerce.text(target, "target")
    began_with = None if finetune_from is None else coerce.path(finetune_from, "finetune_from")
    config = resolve(
        target,
        execution=execution or choose_execution(),
        world=World.from_environment(),
        augmentation=augmentation or Augmentation(),
        model=model or default_model(target, settings.get("method", "sskt")),
        seed=seed,
        limit=limit,
        eval_every=eval_every,
        finetune_from=began_with,
        **settings,
    )
    recorded = config.to_dict()
    chosen = {name: recorded[name] for name in (*_ABOUT, *_read_by(config))}
    for name in ("freeze_until", "labelled_list"):
        if name in chosen and chosen[name] is None:
            del chosen[name]
    if began_with is not None:
        chosen["finetune_from"] = str(began_with)
    if chosen.get("clip_mean") == choose_clip_mean(RELEASED_MEAN, config.model):
        del chosen["clip_mean"]  # of networks that subtract another, it could not be said
    return chosen | {"augmentation": recorded["augmentation"]}


def repeated_settings(folder: Path, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The fewest settings that give a run with the config `recorded`, read from `folder`: what the recipe gives
    is left out. With them, by their names as options, come the places where the run found its data.

    Raises RunError for a run that only its own program can repeat, or whose files are missing.
    """
    config = TrainConfig.from_dict(dict(recorded), str(folder / "config.json"))
    if config.is_own:
        raise RunError(f"{folder}: its student is {config.model}, which only its own program can build; repeat it there")
    if config.method in PRETEXTS:
        raise RunError(f"{folder}: its task was {config.method}; repeat it with sskt pretext")
    paths, places = paths_of(folder), read_paths(folder)
    target = str(places.get("target") or config.target)
    settings: dict[str, Any] = {"target": target, **{name: getattr(config, name) for name in _ABOUT[1:]}}
    settings |= {name: value for name in _SETTLED if (value := getattr(config, name)) not in (None, "none")}
    settings |= _given(config, target) | _labels(config, folder, target)
    if config.sources:
        settings["sources"] = [_lying(name, paths) for name in config.sources]
    if config.teacher_temperature:
        settings["teacher_temperature"] = {
            _lying(name, paths): value for name, value in config.teacher_temperature.items()
        }
    if config.finetune_from is not None:
        settings["finetune_from"] = _initial_weights(config, folder, places)
    return {
        **settings,
        "augmentation": {name: value for name, value in config.augmentation.items() if value is not None},
        "data_dir": places["data_dir"],
        "cache_dir": places["cache_dir"],
        "weights": dict(places["weights"]),
        "contracts": [f"{name}={to_told(contract)}" for name, contract in paths.contracts.items()],
    }


@dataclass(frozen=True)
class RepeatedRun:
    """Follows a run that repeats another (see `pipeline.train.trackers.Tracker`): says where it departs."""

    recorded: Mapping[str, Any]  # the other's config
    file: Path

    def start(self, run: Path, config: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Say which settings and data are not those of the run that is repeated."""
        old = json.loads(json.dumps(TrainConfig.from_dict(dict(self.recorded), str(self.file)).to_dict()))
        now = json.loads(json.dumps(config))
        apart = [f"{name} {_brief(now[name])} (not {_brief(old[name])})" for name in now if now[name] != old[name]]
        log.info(f"repeats {self.file}" + (f", except: {', '.join(apart)}" if apart else ", in every setting"))

    def log_epoch(self, figures: Mapping[str, Any]) -> None:
        """Nothing to do."""

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Nothing to do."""


def _brief(value: Any) -> str:
    return textwrap.shorten(str(value), 60, placeholder="...")


def _read_by(config: TrainConfig) -> list[str]:
    """The settings that a run reads, in the order of `Settings`."""
    unread = {name for name, schedules in _OF_SCHEDULE.items() if config.schedule not in schedules}
    unread |= {"preset"} | ({"kd_reduction"} if config.aux_loss != "kd" else set())
    unread |= set() if config.teacher_temperature else {"teacher_temperature"}
    unread |= {"momentum", "dampening", "nesterov"} if config.optimizer == "adam" else set()
    names = [name for name in Settings.__annotations__ if name not in unread]
    return [name for name in names if config.method in readers_of(name)]


def _given(config: TrainConfig, target: str) -> dict[str, Any]:
    """The settings in which a config differs from its recipe's and its method's."""
    given: dict[str, Any] = {"method": config.method, "recipe": config.recipe}
    others = [name for name in Settings.__annotations__ if name not in (*_DECISIVE, *_OF_DATA, "preset")]
    while True:
        usual = resolve(
            target,
            execution=choose_execution(device="cpu"),
            world=World(),
            augmentation=Augmentation(**config.augmentation),
            model=config.model,
            amp="fp32",
            **given,  # type: ignore[typeddict-item]
        )
        names = [name for name in (*_DECISIVE, *others) if getattr(usual, name) != getattr(config, name)]
        if not (left := [name for name in names if name not in given]):
            return given | {"amp": config.amp}
        given[left[0]] = getattr(config, left[0])


_OF_DATA = (*_SETTLED, "sources", "unlabelled", "labelled_list", "val_share", "teacher_temperature", "amp")


def _labels(config: TrainConfig, folder: Path, target: str) -> dict[str, Any]:
    """Which samples a run had, and which of them had a label."""
    found: dict[str, Any] = {}
    val_share = config.val_share or (None if config.chosen_on else 0.0)
    if val_share is not None:
        found["val_share"] = val_share
    if config.unlabelled or parse_target(target).is_own_folder:
        found["unlabelled"] = [NO_POOL, *unlabelled_of(folder, config, target, ())]
    if config.labelled_list is not None:
        found["labelled_list"] = str(labelled_list_of(folder, config))
    return found


def _lying(name: str, paths: Paths) -> str:
    """A source of a run by the name that opens it on this machine."""
    if not kind_of(name).is_fitted:
        return paths.lying(name)
    asked = "+".join(paths.lying(each) for each in asked_of(name))
    return f"{name.partition(':')[0]}:{asked}" if asked else name


def _initial_weights(config: TrainConfig, folder: Path, places: Mapping[str, Any]) -> str:
    path = Path(places.get("finetune_from") or "")
    if not path.is_file() or weights_name(path) != config.finetune_from:
        raise RunError(
            f"{folder}: started from {config.finetune_from}, which is not at {path} any more; restore it, or say "
            f"--finetune-from"
        )
    return str(path)
