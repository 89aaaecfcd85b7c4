"""The settings of a run before it starts, by their names in config.json."""

from __future__ import annotations

from typing import Any, Unpack

from cache import Location
from pipeline.data import Augmentation
from pipeline.runtime import Execution, Paths, World, choose_execution, coerce
from pipeline.train.backbone import choose_clip_mean, default_model
from pipeline.train.config import ABOUT, Settings, TrainConfig
from pipeline.train.method import readers_of
from pipeline.train.published_weights import first_weights
from pipeline.train.resolve import resolve
from sskt.normalise import RELEASED_MEAN

_OF_SCHEDULE = {
    "milestones": ("multistep",),
    "gamma": ("multistep", "plateau"),
    "patience": ("plateau",),
    "warm_up": ("trapezoid",),
    "cool_down": ("trapezoid",),
}


def resolved_settings(
    target: str,
    *,
    model: str | None = None,
    augmentation: Augmentation | None = None,
    execution: Execution | None = None,
    seed: int = 0,
    limit: int | None = None,
    eval_every: int = 1,
    finetune_from: Location | str | None = None,
    pretrained: bool = False,
    paths: Paths | None = None,
    **settings: Unpack[Settings],
) -> dict[str, Any]:
    """What `train` with the same arguments would do, as far as it is known before data and sources are
    opened: a value for each setting that the run reads, by its name in config.json. None: the data will
    settle it. Of `paths` only the folder of weights is read, where `pretrained` looks for the published ones,
    which it downloads as `train` does.

    Raises RunError for what `train` would refuse without looking at data.
    """
    target = coerce.text(target, "target")
    model = model or default_model(target, settings.get("method", "sskt"))
    given = coerce.place_or_none(finetune_from, "finetune_from")
    began_with = first_weights(model, paths or Paths(), given, pretrained)
    config = resolve(
        target,
        execution=execution or choose_execution(),
        world=World.from_environment(),
        augmentation=augmentation or Augmentation(),
        model=model,
        seed=seed,
        limit=limit,
        eval_every=eval_every,
        finetune_from=began_with,
        **settings,
    )
    recorded = config.to_dict()
    chosen = {name: recorded[name] for name in (*ABOUT, *_read_by(config))}
    for name in ("freeze_until", "labelled_list"):
        if name in chosen and chosen[name] is None:
            del chosen[name]
    if began_with is not None:
        chosen["finetune_from"] = str(given or began_with)
    if chosen.get("clip_mean") == choose_clip_mean(RELEASED_MEAN, config.model):
        del chosen["clip_mean"]  # of networks that subtract another, it could not be said
    return chosen | {"augmentation": recorded["augmentation"]}


def _read_by(config: TrainConfig) -> list[str]:
    """The settings that a run reads, in the order of `Settings`."""
    unread = {name for name, schedules in _OF_SCHEDULE.items() if config.schedule not in schedules}
    unread |= {"preset"} | ({"kd_reduction"} if config.aux_loss != "kd" else set())
    unread |= set() if config.teacher_temperature else {"teacher_temperature"}
    unread |= {"momentum", "dampening", "nesterov"} if config.optimizer != "sgd" else set()
    names = [name for name in Settings.__annotations__ if name not in unread]
    return [name for name in names if config.method in readers_of(name)]
