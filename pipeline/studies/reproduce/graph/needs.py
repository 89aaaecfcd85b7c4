"""What the rows of table G share on each target: a pretext run of each task, four teachers, their stores, and
the teachers' own scores.
Each is made when a row first needs it, once for all rows and seeds, and skipped where it is there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cache import write_durably
from pipeline.runtime import join_world
from pipeline.studies.ensemble import ensemble
from pipeline.studies.reproduce.campaign import Campaign
from pipeline.studies.reproduce.graph.rows import (
    CLIPS,
    common,
    network_of_task,
    pretext_name,
    scaled,
    shown,
    teacher_name,
    teacher_settings,
)
from pipeline.studies.series import matches, precompute_once, pretext_or_resume, train_or_resume
from pipeline.train import ENCODER, as_training, read_summary
from sskt.download import known_digest_of
from sskt.recipes import recipe_for
from sskt.sources import at_output
from sskt.students import PRETEXTS

_MADE_OF = "made-of.json"  # beside ensemble.json: what the teachers were


class Needs:
    """The teachers of each target, and what is made of them."""

    def __init__(self, campaign: Campaign, outputs: dict[str, tuple[str, ...]]) -> None:
        """`outputs`: those that the rows of each target learn from."""
        self._campaign, self._outputs = campaign, outputs
        self._there = set[tuple[str, str]]()  # what, target

    def teachers(self, target: str) -> tuple[str, ...]:
        """The teachers by name, in the order of the tasks, be they trained or not."""
        return tuple(f"run:{folder}" for folder in teacher_folders(target, self._campaign).values())

    def train(self, target: str) -> None:
        """Have the teachers trained, each by its pretext task first. Raises what the two stages raise."""
        if ("teachers", target) in self._there:
            return
        campaign = self._campaign
        for task, folder in teacher_folders(target, campaign).items():
            train_or_resume(
                target,
                folder,
                **teacher_settings(task, campaign),
                paths=campaign.paths.of(()),
                seed=0,
                finetune_from=pretext_once(task, target, campaign),
            )
        self._there.add(("teachers", target))

    def precompute(self, target: str) -> None:
        """Have the stores filled that the target's rows need, after the teachers."""
        self.train(target)
        if ("stores", target) in self._there:
            return
        campaign, teachers = self._campaign, self.teachers(target)
        precompute_once(
            target,
            [at_output(teacher, output) for teacher in teachers for output in self._outputs[target]],
            views=campaign.views,
            paths=campaign.paths.of(teachers),
            execution=campaign.execution,
            limit=campaign.shrink.limit,
            augmentation=shown(campaign),
        )
        self._there.add(("stores", target))

    def score(self, target: str) -> None:
        """Have the teachers scored together, after they are trained."""
        self.train(target)
        campaign, folder = self._campaign, _ensemble_folder(target, self._campaign)
        with join_world(campaign.execution.device) as world:
            if world.is_first and teachers_scores(target, campaign) is None:
                folders = list(teacher_folders(target, campaign).values())
                paths, execution = campaign.paths.of(()), campaign.execution
                made_of = _made_of(target, campaign)
                ensemble(folders, out=folder, paths=paths, execution=execution, clips=CLIPS)
                write_durably(folder / _MADE_OF, json.dumps(made_of, indent=2).encode())
            world.broadcast(value=True)  # wait until the first rank has written


def teacher_folders(target: str, campaign: Campaign) -> dict[str, Path]:
    """The runs of the teachers by task."""
    return {task: campaign.folder(teacher_name(task, target), 0) for task in PRETEXTS}


def is_taught(task: str, target: str, campaign: Campaign) -> bool:
    """Whether a task's teacher has finished with this campaign's settings."""
    folder = teacher_folders(target, campaign)[task]
    if read_summary(folder) is None or not is_learned(task, target, campaign):
        return False
    return matches(
        target,
        folder,
        **teacher_settings(task, campaign),
        paths=campaign.paths.of(()),
        seed=0,
        finetune_from=pretext_folder(task, target, campaign) / ENCODER,
    )


def teachers_scores(target: str, campaign: Campaign) -> dict[str, dict[str, Any]] | None:
    """The figures of each teacher by its folder, of their fusion and of the linear classifier; None if they
    are not known, or are those of other teachers.
    """
    folder = _ensemble_folder(target, campaign)
    try:
        report = json.loads((folder / "ensemble.json").read_text(encoding="utf-8"))
        made_of = json.loads((folder / _MADE_OF).read_text(encoding="utf-8"))
        if made_of != _made_of(target, campaign):
            return None
    except FileNotFoundError:
        return None
    return {row["what"]: row for row in report["rows"]}


def _made_of(target: str, campaign: Campaign) -> dict[str, Any]:
    """What the scores depend on. Raises FileNotFoundError if a teacher is not there."""
    folders = teacher_folders(target, campaign)
    students = {task: known_digest_of(folder / "student.safetensors") for task, folder in folders.items()}
    return {"teachers": students, "clips": CLIPS}


def _ensemble_folder(target: str, campaign: Campaign) -> Path:
    return campaign.out / f"teachers-{target}"


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
