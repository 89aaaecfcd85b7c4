"""The fewest settings that repeat a recorded run, with the places where it found its data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.data import NO_POOL, Augmentation, parse_target
from pipeline.runtime import Paths, World, choose_execution
from pipeline.train.config import ABOUT, Settings, TrainConfig
from pipeline.train.resolve import resolve
from pipeline.train.run_folder import read_paths
from pipeline.train.whereabouts import initial_weights_of, labelled_list_of, paths_of, unlabelled_of
from sskt.errors import RunError
from sskt.sources import asked_of, kind_of, to_told
from sskt.students import PRETEXTS

# what others depend on comes first, so that a default which follows from it is not taken for a choice
_DECISIVE = ("schedule", "optimizer", "primary_loss", "aux_loss", "graph_logits", "epochs")
_SETTLED = ("labels", "views", "labelled_share")  # recorded as they came out; None: nothing to repeat


def repeated_settings(folder: Path, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The fewest settings that give a run with the config `recorded`, read from `folder`: what the recipe
    gives is left out. With them, by their names as options, come the places where the run found its data.

    Raises RunError for a run that only its own program can repeat, or whose files are missing.
    """
    config = TrainConfig.from_dict(dict(recorded), str(folder / "config.json"))
    if config.is_own:
        raise RunError(
            f"{folder}: its student is {config.model}, which its own program builds; repeat it there"
        )
    if config.method in PRETEXTS:
        raise RunError(f"{folder}: its task was {config.method}; repeat it with sskt pretext")
    try:
        paths, places = paths_of(folder), read_paths(folder)
    except RunError as error:
        raise RunError(
            f"{folder}: its environment.json, which says where the run found its data, cannot be read; copy "
            f"it beside config.json"
        ) from error
    target = str(places.get("target") or config.target)
    settings: dict[str, Any] = {"target": target, **{name: getattr(config, name) for name in ABOUT[1:]}}
    settings |= {name: value for name in _SETTLED if (value := getattr(config, name)) not in (None, "none")}
    settings |= _given(config, target) | _labels(config, folder, target)
    if config.sources:
        settings["sources"] = [_lying(name, paths) for name in config.sources]
    if config.teacher_temperature:
        settings["teacher_temperature"] = {
            _lying(name, paths): value for name, value in config.teacher_temperature.items()
        }
    if config.finetune_from is not None:
        initial_weights_of(folder, config, paths)  # which looks for them
        settings["finetune_from"] = places["finetune_from"]
    return {
        **settings,
        "augmentation": {name: value for name, value in config.augmentation.items() if value is not None},
        "data_dir": places["data_dir"],
        "cache_dir": places["cache_dir"],
        "weights": dict(places["weights"]),
        "contracts": [f"{name}={to_told(contract)}" for name, contract in paths.contracts.items()],
    }


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
            **given,
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
