"""Start, resume or skip a run, depending on what its folder holds, so that a series can be restarted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cache import Location, delete_file
from pipeline.data import Augmentation
from pipeline.precompute.run import precompute
from pipeline.runtime import Execution, Paths, World, join_world
from pipeline.train import (
    TrainConfig,
    as_training,
    default_model,
    has_settings,
    require_learnable,
    require_sound,
    resolve,
    train,
    with_places,
)
from sskt.errors import RunError
from sskt.sources import asked_of
from sskt.students import Backbone, require_built_by_name


def train_or_resume(target: str, out: Location, **settings: Any) -> dict[str, Any]:
    """The summary of the run in `out`, which `train(target, out=out, **settings)` starts, continues or, if
    it has finished, reads.

    A finished run's checkpoint is removed: nobody resumes from it, and a series would fill the disk. Raises
    whatever `train` raises.
    """
    with join_world(settings["execution"].device) as world:
        summary = train(target, out=out, **settings)
        if world.is_first:
            delete_file(out / "last.pt")
        world.broadcast(value=True)  # wait until the first rank has written
    return summary


def pretext_or_resume(
    targets: str | Sequence[str],
    *,
    task: str,
    out: Location,
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


def matches(target: str, out: Location, *, paths: Paths, **settings: Any) -> bool:
    """Whether the run in `out` has the settings `train_or_resume` would use; its data are not compared."""
    return has_settings(out, _planned(target, **settings), paths=paths)


def _planned(
    target: str,
    *,
    execution: Execution,
    paths: Paths | None = None,  # noqa: ARG001 - so that it takes what `train_or_resume` takes
    augmentation: Augmentation | None = None,
    model: str | Backbone | None = None,
    **settings: Any,
) -> TrainConfig:
    """The config of a run before its data and sources are opened."""
    return resolve(
        target,
        execution=execution,
        world=World.from_environment(),
        augmentation=augmentation or Augmentation(),
        model=model or default_model(target, settings.get("method", "sskt")),
        **settings,
    )
