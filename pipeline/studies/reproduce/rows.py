"""What it takes to run a published row here, and in what that differs from the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pipeline.data.augmentation import Augmentation
from pipeline.runtime import Execution, World, coerce
from pipeline.studies.reproduce.all_clips import ALL_CLIPS_METRIC
from pipeline.studies.reproduce.marks import Mark, Setup, departures
from pipeline.studies.reproduce.published import GRAPH, Published, published_rows
from pipeline.train.resolve import resolve
from sskt.errors import RunError
from sskt.recipes import Recipe, recipe_for
from sskt.sources import parse_source

_UNKNOWN = float("nan")
# of a pretrained network, what a student keeps as it is: the authors' command has --ft_begin_index 4
_FROZEN_UNTIL = {"kinetics": "layer4"}
# a kd row's teacher, which the paper does not name: ours, from scratch, the next larger network
TEACHERS = {
    "resnet20": "resnet32",
    "resnet32": "resnet44",
    "resnet18": "resnet34",
    "resnet34": "resnet50",
    "resnet50": "resnet50",
}
# of the official train split, for what there is to do before the data are there
TRAINING_SAMPLES = {
    "cifar10": 50_000,
    "cifar100": 50_000,
    "stl10": 5_000,
    "imagenet": 1_281_167,
    "places365": 1_803_460,
    "voc": 5_717,
    "ucf101": 9_537,
    "hmdb51": 3_570,
}
# what the paper reports of a target, where it is not top-1 of the run's own evaluation views: per-image
# average precision, and top-1 over all clips of a video (docs/method.md, section 2.7)
_METRICS = {"voc": "test_image_ap", "ucf101": ALL_CLIPS_METRIC, "hmdb51": ALL_CLIPS_METRIC}


@dataclass(frozen=True, slots=True)
class Shrink:
    """How much smaller than the paper's a run is."""

    scale: float = 1.0  # of epochs, with which the milestones move
    limit: int | None = None  # training samples

    def __post_init__(self) -> None:
        """Raises RunError for what is no number."""
        object.__setattr__(self, "scale", coerce.number(self.scale, "scale"))
        object.__setattr__(self, "limit", coerce.whole_or_none(self.limit, "limit"))

    def overrides(self, recipe: Recipe) -> dict[str, Any]:
        """The recipe's epochs at this scale. Raises RunError unless 0 < scale <= 1."""
        if not 0 < self.scale <= 1:
            raise RunError(f"--scale is {self.scale}, expected more than 0 and at most 1")
        if self.scale == 1:
            return {}
        return {"epochs": max(1, round(recipe.epochs * self.scale))}

    def marks(self) -> list[Mark]:
        """What a reader must know of a run that is smaller."""
        marks = [Mark("scale", f"scale {self.scale:g} of the paper's epochs")] if self.scale != 1 else []
        limited = self.limit is not None
        return marks + ([Mark("limit", f"{self.limit:,} training samples")] if limited else [])


@dataclass(frozen=True, slots=True)
class Attempt:
    """One published row with our sources in it."""

    row: Published
    sources: tuple[str, ...]  # ours, in place of the row's
    overrides: dict[str, Any]
    marks: list[Mark] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """The summary's figure that the paper reports."""
        return _METRICS.get(self.row.target, "test_top1")

    @property
    def epochs(self) -> int:
        """Of one run."""
        epochs: int = self.overrides.get("epochs", recipe_for(self.row.target).epochs)
        return epochs

    def eval_every(self, limit: int | None) -> int:
        """Epochs between two looks at the test split: a plateau needs each, else twenty looks are enough, and
        one at the end where `limit` samples are trained on: a look may cost more than such an epoch.
        """
        if recipe_for(self.row.target).schedule == "plateau" or "epochs" not in self.overrides:
            return 1
        return self.epochs if limit is not None else max(1, self.epochs // 20)

    @property
    def freeze_until(self) -> str | None:
        """The student's part before this one stays as its weights have it."""
        return _FROZEN_UNTIL.get(self.row.init)

    def settings(self, sources: tuple[str, ...], views: int | None = None) -> dict[str, Any]:
        """The settings of `train` by which its student learns, from `views` of `sources` in turn."""
        row = self.row
        return {
            **self.overrides,
            "method": "scratch" if row.method == "finetune" else row.method,
            "sources": sources,
            "labels": "cached" if sources else "auto",
            "views": views,
            "transfer_module": row.transfer_module,
            "psi": row.psi,
            "freeze_until": self.freeze_until,
        }

    @property
    def setup(self) -> Setup:
        """What its runs are, before data and weights are there."""
        config = resolve(
            self.row.target,
            execution=Execution(torch.device("cpu")),
            world=World(),
            augmentation=Augmentation(),
            model=self.row.model,
            **self.settings(self.sources),
        )
        return Setup(self.row, config, Augmentation(), self.metric)

    @property
    def teacher(self) -> Attempt | None:
        """A kd row's: a network of ours from scratch, the same run as the published row of that network."""
        if self.row.method != "kd":
            return None
        target, model = self.row.target, TEACHERS[self.row.model]
        row = Published(
            "", target, model, "scratch", "random", (), False, "", "", None, _UNKNOWN, None
        )  # fmt: skip
        return Attempt(row, (), self.overrides)


def attempts(
    table: str, rows: Sequence[str], *, shrink: Shrink, stand_ins: Mapping[str, str]
) -> list[Attempt]:
    """The rows of a table that `rows` choose: numbers from 1 on, ranges, or words that a row's name holds;
    without those that the table cites from other papers.

    `stand_ins` name another source in place of a published one. Raises RunError for a stand-in of what no row
    has, and what `chosen_rows` raises.
    """
    known = published_sources()
    if strange := sorted(set(stand_ins) - set(known)):
        raise RunError(
            f"--stand-in names {strange[0]}, the published rows have {', '.join(known)}; correct the name"
        )
    return [attempt_of(row, shrink, stand_ins) for row in chosen_rows(table, rows) if not row.is_cited]


def chosen_rows(table: str, rows: Sequence[str]) -> list[Published]:
    """The rows that `attempts` would run, and among them those that the table cites, which are never run.

    Raises RunError if nothing is chosen, and for the rows of graph distillation, which is another paper's.
    """
    listed = published_rows(table)
    chosen = [row for number, row in enumerate(listed, start=1) if _is_chosen(number, row, rows)]
    if not chosen:
        names = ", ".join(row.name for row in listed[:3])
        raise RunError(f"--rows chooses none of the {len(listed)} rows of table {table} ({names}, ...)")
    if table == GRAPH and not all(row.is_cited for row in chosen):
        n_cited = sum(row.is_cited for row in listed)
        raise RunError(
            f"table {GRAPH} is of graph distillation, whose students and teachers are not here yet; "
            f"--rows cited shows the {n_cited} rows that it cites"
        )
    return chosen


def published_sources() -> list[str]:
    """The sources of all published rows."""
    return list(dict.fromkeys(source for row in published_rows() for source in row.sources))


def began_with(row: Published) -> tuple[str, ...]:
    """The name of the weights that a fine-tuned row's student begins with; none for the others."""
    return () if row.init in ("random", "") else (parse_source(f"{row.init}:{row.model}").name,)


def _is_chosen(number: int, row: Published, rows: Sequence[str]) -> bool:
    for text in rows:
        first, dash, last = text.partition("-")
        if first.isdecimal() and (not dash or last.isdecimal()):
            if int(first) <= number <= int(last or first):
                return True
        elif text in row.name:
            return True
    return not rows


def attempt_of(row: Published, shrink: Shrink, stand_ins: Mapping[str, str]) -> Attempt:
    """One row with its marks, as far as they are known without data and weights."""
    sources = tuple(stand_ins.get(name, name) for name in row.sources)
    overrides = shrink.overrides(recipe_for(row.target))
    if row.primary_loss:
        overrides["primary_loss"] = row.primary_loss
    if row.aux_loss:
        overrides["aux_loss"] = row.aux_loss
    marks = shrink.marks()
    marks += [Mark("stand-in", f"{name} is {stand_ins[name]}") for name in row.sources if name in stand_ins]
    attempt = Attempt(row, sources, overrides, marks)
    if attempt.teacher:
        marks.append(Mark("teacher", f"teacher: {attempt.teacher.row.model} of ours, from scratch"))
    if row.method == "dml":  # SSKT section 4.4: "the same conditions as the source and target networks"
        other = "3D ResNet50" if row.model.startswith("resnet3d") else "ResNet50"
        marks.append(Mark("peers", f"the peers are twins, where the paper's second one is a {other}"))
    marks += departures(attempt.setup)
    return attempt
