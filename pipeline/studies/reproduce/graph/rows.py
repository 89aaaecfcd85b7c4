"""The settings that run a row of table G: a student by its words, or its teachers alone.

Students have the paper's schedule for all rows, as `sskt.recipes` has it for method graph. Rates, epochs and
batches of the teachers' fine-tuning are ours: the paper prints none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.data import Augmentation, parse_target
from pipeline.studies.reproduce.campaign import Campaign
from pipeline.studies.reproduce.marks import Mark
from pipeline.studies.reproduce.published import GRAPH, TEACHERS_ALONE, Published
from pipeline.studies.reproduce.rows import chosen_rows
from sskt.recipes import Recipe, recipe_for
from sskt.sources import DEFAULT_GRID, at_output
from sskt.students import PRETEXTS, alexnet_grid

CLIPS = 25  # centre frames of a video that score it, a custom of two-stream networks; the paper prints none
LAYER = 4  # the paper's conv4
_NETWORKS = {task: f"vgg19-{task}" for task in PRETEXTS} | {"prediction": "prednet"}
# of a teacher: a pretext encoder with a head for the target's classes, all of which learns
_FINE_TUNING: dict[str, Any] = {
    "epochs": 100,
    "batch_size": 32,
    "optimizer": "sgd",
    "lr": 0.01,
    "momentum": 0.9,
    "dampening": 0.0,
    "weight_decay": 5e-4,
    "schedule": "cosine",
}
_OF_PREDNET: dict[str, Any] = {"epochs": 60, "batch_size": 16, "optimizer": "adam", "lr": 1e-4}
# what a student's settings of `train` are by the row's words in the table
_STUDENTS: dict[str, dict[str, Any]] = {
    "alexnet random": {"method": "scratch"},
    "alexnet imagenet-pretrained": {"method": "scratch"},
    "kd uniform": {"method": "kd", "temperature": 2.0, "alpha": 0.6},
    "logits graph mmgd": {"graph_logits": "cosine", "graph_features": "off"},
    "logits graph gl": {"graph_logits": "em", "graph_features": "off"},
    "feature distill uniform": {"graph_logits": "off", "graph_features": "uniform"},
    "feature graph gr": {"graph_logits": "off", "graph_features": "graph"},
    "mmgd+gr": {"graph_logits": "cosine", "graph_features": "graph"},
    "gl+gr": {"graph_logits": "em", "graph_features": "graph"},
}
_SCHEDULE = (
    "batch_size", "optimizer", "lr", "schedule", "gamma", "momentum", "dampening", "nesterov", "weight_decay",
)  # fmt: skip
PRETRAINED = "alexnet imagenet-pretrained"


@dataclass(frozen=True, slots=True)
class GraphAttempt:
    """A row of table G and how it is run."""

    row: Published
    campaign: Campaign
    marks: list[Mark] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """The figure of a run that is compared with the paper's."""
        return f"{'test_map_plain' if self.is_multilabel else 'test_top1'}_{CLIPS}_clips"

    @property
    def is_multilabel(self) -> bool:
        """Whether the target's videos have several labels."""
        return parse_target(self.row.target).is_multilabel

    @property
    def has_student(self) -> bool:
        """Whether a student is trained; else the teachers are scored."""
        return self.row.method not in TEACHERS_ALONE

    @property
    def outputs(self) -> tuple[str, ...]:
        """The teachers' outputs that are compared with a student's: none, logits, maps or both."""
        if not self.has_student:
            return ()
        settings = _STUDENTS[self.row.method]
        logits = settings.get("method") == "kd" or settings.get("graph_logits", "off") != "off"
        maps = settings.get("graph_features", "off") != "off"
        return (*(("logits",) if logits else ()), *((f"layer{LAYER}:{self.grid}",) if maps else ()))

    @property
    def needs_teachers(self) -> bool:
        """Whether teachers have to be trained for it."""
        return bool(self.outputs) or not self.has_student

    @property
    def grid(self) -> int:
        """The side of the teachers' maps: 6, or that of a student's which are smaller."""
        return min(DEFAULT_GRID, alexnet_grid(self.campaign.graph.side_px))

    @property
    def epochs(self) -> int:
        """Of a run of the student; 0 if there is none."""
        return scaled(self._recipe.epochs, self.campaign) if self.has_student else 0

    @property
    def _recipe(self) -> Recipe:
        return recipe_for(self.row.target, "graph", finetuned=self.row.method == PRETRAINED)

    def sources(self, teachers: Sequence[str]) -> tuple[str, ...]:
        """The sources of the student's run, from its `teachers`."""
        return tuple(at_output(teacher, output) for output in self.outputs for teacher in teachers)

    def settings(self, teachers: Sequence[str]) -> dict[str, Any]:
        """Settings of `train` for its student."""
        recipe, words = self._recipe, _STUDENTS[self.row.method]
        sources = self.sources(teachers)
        limit = self.campaign.shrink.limit
        return {
            "method": "graph",
            **{name: getattr(recipe, name) for name in _SCHEDULE},
            "epochs": self.epochs,
            "milestones": recipe.milestones_in(self.epochs),
            **words,
            "sources": sources,
            "labels": "cached" if sources else "auto",
            "views": self.campaign.views,
            "model": _small("alexnet", self.campaign),
            "eval_every": self.epochs if limit is not None else max(1, self.epochs // 20),
            **common(self.campaign),
        }


def graph_attempts(campaign: Campaign, rows: Sequence[str], targets: Sequence[str]) -> list[GraphAttempt]:
    """The rows of table G that are run, without those that it cites; see `chosen_rows`."""
    chosen = chosen_rows(GRAPH, rows, targets)
    return [GraphAttempt(row, campaign) for row in chosen if not row.is_cited]


def teacher_settings(task: str, campaign: Campaign) -> dict[str, Any]:
    """Settings of `train` for the teacher that learned this pretext task."""
    settings = _FINE_TUNING | (_OF_PREDNET if task == "prediction" else {})
    epochs = scaled(settings["epochs"], campaign)
    return {
        "method": "scratch",
        **settings,
        "epochs": epochs,
        "model": network_of_task(task, campaign),
        "eval_every": epochs,
        **common(campaign),
    }


def network_of_task(task: str, campaign: Campaign) -> str:
    """The name of a pretext task's network."""
    return _small(_NETWORKS[task], campaign)


def common(campaign: Campaign) -> dict[str, Any]:
    """What all runs of the table share."""
    return {
        "augmentation": shown(campaign),
        "execution": campaign.execution,
        "limit": campaign.shrink.limit,
        "amp": campaign.amp,
    }


def shown(campaign: Campaign) -> Augmentation:
    """The views that students and teachers see."""
    return Augmentation(side_px=campaign.graph.side_px)


def teacher_name(task: str, target: str) -> str:
    """The name of a teacher's run."""
    return f"teacher-{task}-{target}"


def pretext_name(task: str, target: str) -> str:
    """The name of a pretext run."""
    return f"pretext-{task}-{target}"


def _small(model: str, campaign: Campaign) -> str:
    return f"{model}-small" if campaign.graph.small else model


def scaled(epochs: int, campaign: Campaign) -> int:
    """Epochs by the campaign's scale, at least one."""
    return max(1, round(epochs * campaign.shrink.scale))
