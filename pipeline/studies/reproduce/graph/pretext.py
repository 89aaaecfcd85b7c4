"""The pretext runs of table G: the one place that calls the pretext stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.runtime import join_world
from pipeline.studies.reproduce.campaign import Campaign
from pipeline.studies.reproduce.graph.rows import network_of_task, pretext_name, shown
from pipeline.train.pretext.run import pretext
from pipeline.train.run import resume
from pipeline.train.run_folder import read_config, read_summary
from sskt.errors import RunError

ENCODER = "encoder.safetensors"
# of each task, by its own recipe
_EPOCHS = {"sorting": 200, "egomotion": 200, "tracking": 200, "prediction": 150}


def pretext_epochs(task: str, campaign: Campaign) -> int:
    """Epochs of a task's run: those that the campaign names, else the task's own by the campaign's scale."""
    return campaign.graph.pretext_epochs or max(1, round(_EPOCHS[task] * campaign.shrink.scale))


def pretext_folder(task: str, target: str, campaign: Campaign) -> Path:
    """The run of one task on a target's training videos, for all rows and seeds."""
    return campaign.folder(pretext_name(task, target), 0)


def pretext_once(task: str, target: str, campaign: Campaign) -> Path:
    """The encoder of a task: trained, resumed or left as it is, depending on what its folder holds.

    Raises RunError if the folder holds a run with other settings, and what the pretext stage raises.
    """
    folder, how = pretext_folder(task, target, campaign), {"execution": campaign.execution}
    with join_world(campaign.execution.device) as world:
        if not world.broadcast((folder / "config.json").is_file()):
            pretext(
                target,
                out=folder,
                augmentation=shown(campaign),
                paths=campaign.paths.of(()),
                amp=campaign.amp,
                **_settings(task, campaign),
                **how,
            )
        else:
            _require_same(folder, _settings(task, campaign))
            if read_summary(folder) is None:
                resume(folder, paths=campaign.paths.of(()), **how)
        if world.is_first:
            (folder / "last.pt").unlink(missing_ok=True)
        world.broadcast(value=True)  # wait until the first rank has written
    return folder / ENCODER


def is_learned(task: str, target: str, campaign: Campaign) -> bool:
    """Whether a task's run has finished with this campaign's settings."""
    folder = pretext_folder(task, target, campaign)
    if read_summary(folder) is None or not (folder / ENCODER).is_file():
        return False
    return _difference(folder, _settings(task, campaign)) is None


def _settings(task: str, campaign: Campaign) -> dict[str, Any]:
    return {
        "task": task,
        "model": network_of_task(task, campaign),
        "epochs": pretext_epochs(task, campaign),
        "limit": campaign.shrink.limit,
        "seed": 0,
    }


def _require_same(folder: Path, settings: dict[str, Any]) -> None:
    if different := _difference(folder, settings):
        name, there, wanted = different
        raise RunError(
            f"{folder}: was started with {name} {there}, this table has {wanted}; choose another --out"
        )


def _difference(folder: Path, settings: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """The first setting in which the run in `folder` differs, and both values."""
    recorded = read_config(folder)
    for name, value in settings.items():
        if name in recorded and recorded[name] != value:
            return name, recorded[name], value
    return None
