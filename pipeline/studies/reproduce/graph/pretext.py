"""The pretext runs of table G: one of each task and target, for all rows and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.studies.reproduce.campaign import Campaign
from pipeline.studies.reproduce.graph.rows import common, network_of_task, pretext_name, scaled
from pipeline.studies.series import matches, pretext_or_resume
from pipeline.train import ENCODER, as_training, read_summary
from sskt.recipes import recipe_for


def pretext_once(task: str, target: str, campaign: Campaign) -> Path:
    """The encoder of a task: trained, resumed or left as it is, depending on what its folder holds.

    Raises RunError if the folder holds a run with other settings, and what the pretext stage raises.
    """
    folder = pretext_folder(task, target, campaign)
    pretext_or_resume(target, task=task, out=folder, **_settings(task, target, campaign))
    return folder / ENCODER


def is_learned(task: str, target: str, campaign: Campaign) -> bool:
    """Whether a task's run has finished with this campaign's settings."""
    folder = pretext_folder(task, target, campaign)
    if read_summary(folder) is None or not (folder / ENCODER).is_file():
        return False
    settings = _settings(task, target, campaign)
    _, own = as_training(target, task=task, model=settings.pop("model"), paths=settings["paths"])
    return matches(target, folder, **own, **settings)


def pretext_epochs(task: str, target: str, campaign: Campaign) -> int:
    """Epochs of a task's run: those that the campaign names, else the task's own by the campaign's scale."""
    return campaign.graph.pretext_epochs or scaled(recipe_for(target, task).epochs, campaign)


def pretext_folder(task: str, target: str, campaign: Campaign) -> Path:
    """The run of one task on a target's training videos."""
    return campaign.folder(pretext_name(task, target), 0)


def _settings(task: str, target: str, campaign: Campaign) -> dict[str, Any]:
    epochs = pretext_epochs(task, target, campaign)
    return {
        "model": network_of_task(task, campaign),
        "epochs": epochs,
        "eval_every": epochs,
        "paths": campaign.paths.of(()),
        "seed": 0,
        **common(campaign),
    }
