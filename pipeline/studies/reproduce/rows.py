"""The settings that run a published row, and how they differ from the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pipeline.data import Augmentation
from pipeline.runtime import Execution, World, coerce
from pipeline.studies.reproduce.all_clips import ALL_CLIPS_METRIC
from pipeline.studies.reproduce.marks import Mark, Setup, departures
from pipeline.studies.reproduce.published import Published, published_rows
from pipeline.studies.series import networks_of
from pipeline.train import resolve
from sskt.errors import RunError
from sskt.recipes import Recipe, recipe_for
from sskt.sources import kind_of, parse_source

_UNKNOWN = float("nan")
# the first layer of a pretrained network that a student trains: the authors' command has --ft_begin_index 4
_FROZEN_UNTIL = {"kinetics": "layer4"}
# teachers of kd rows, which the paper does not name: ours are the next larger network, from scratch
TEACHERS = {
    "resnet20": "resnet32",
    "resnet32": "resnet44",
    "resnet18": "resnet34",
    "resnet34": "resnet50",
    "resnet50": "resnet50",
}
# sizes of the official train splits, for dry runs without the data
TRAINING_SAMPLES = {
    "cifar10": 50_000,
    "cifar100": 50_000,
    "stl10": 5_000,
    "imagenet": 1_281_167,
    "places365": 1_803_460,
    "voc": 5_717,
    "ucf101": 9_537,
    "hmdb51": 3_570,
    "ccv": 4_659,
}
# the paper's metric for a target, if not top-1 on the run's own evaluation views: per-image average
# precision, and top-1 over all clips of a video (docs/method.md, section 2.7)
_METRICS = {"voc": "test_image_ap", "ucf101": ALL_CLIPS_METRIC, "hmdb51": ALL_CLIPS_METRIC}


@dataclass(frozen=True, slots=True)
class Shrink:
    """How much smaller a run is than the paper's."""

    scale: float = 1.0  # of the epochs; milestones move along
    limit: int | None = None  # training samples

    def __post_init__(self) -> None:
        """Raises RunError for anything but numbers."""
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
        """What a reader must know about a smaller run."""
        marks = [Mark("scale", f"scale {self.scale:g} of the paper's epochs")] if self.scale != 1 else []
        limited = self.limit is not None
        return marks + ([Mark("limit", f"{self.limit:,} training samples")] if limited else [])


@dataclass(frozen=True, slots=True)
class Attempt:
    """One published row with our sources in it."""

    row: Published
    sources: tuple[str, ...]  # ours, replacing the row's
    overrides: dict[str, Any]
    marks: list[Mark] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """The name in the summary of the metric that the paper reports."""
        return _METRICS.get(self.row.target, "test_top1")

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks that its sources are, or are fitted on."""
        return networks_of(self.sources)

    @property
    def epochs(self) -> int:
        """Epochs of one run."""
        epochs: int = self.overrides.get("epochs", recipe_for(self.row.target).epochs)
        return epochs

    def eval_every(self, limit: int | None) -> int:
        """Epochs between evaluations on the test split: 1 for a plateau schedule, else about twenty per run;
        with `limit`, one at the end, since an evaluation may cost more than such an epoch.
        """
        if recipe_for(self.row.target).schedule == "plateau" or "epochs" not in self.overrides:
            return 1
        return self.epochs if limit is not None else max(1, self.epochs // 20)

    @property
    def freeze_until(self) -> str | None:
        """The student's layers before this one keep their pretrained weights."""
        return _FROZEN_UNTIL.get(self.row.init)

    def settings(self, sources: tuple[str, ...], views: int | None = None) -> dict[str, Any]:
        """Settings of `train` for its student, which learns from `views` of `sources` in turn."""
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
        """The settings of its runs, as far as known without data and weights."""
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
        """A kd row's teacher: our network from scratch, the same run as that network's published row."""
        if self.row.method != "kd":
            return None
        target, model = self.row.target, TEACHERS[self.row.model]
        row = Published(
            "", target, model, "scratch", "random", (), False, "", "", None, _UNKNOWN, None
        )  # fmt: skip
        return Attempt(row, (), self.overrides)


def attempts(
    table: str,
    rows: Sequence[str],
    *,
    shrink: Shrink,
    stand_ins: Mapping[str, str],
    targets: Sequence[str] = (),
) -> list[Attempt]:
    """The rows of a table that `rows` select by number (from 1), range, or part of a row's name; without rows
    that the table cites from other papers. Not of table G, which `pipeline.studies.reproduce.graph` runs.

    `stand_ins` map a published source to its replacement. Raises RunError for a stand-in for a source that no
    row has, for rows whose only source would be a probe, and what `chosen_rows` raises.
    """
    known = published_sources()
    if unknown := sorted(set(stand_ins) - set(known)):
        raise RunError(
            f"--stand-in names {unknown[0]}, the published rows have {', '.join(known)}; correct the name"
        )
    chosen = [row for row in chosen_rows(table, rows, targets) if not row.is_cited]
    _require_heads(table, chosen, stand_ins)
    return [attempt_of(row, shrink, stand_ins) for row in chosen]


def is_headless(row: Published, stand_ins: Mapping[str, str]) -> bool:
    """Whether stand-ins leave a row that learns from sources no source head: what such rows compare, losses
    and transfer modules, a probe does not have.
    """
    return bool(row.sources) and all(_is_probe(name, stand_ins) for name in row.sources)


def _require_heads(table: str, chosen: Sequence[Published], stand_ins: Mapping[str, str]) -> None:
    """Raise RunError for rows that are headless."""
    headless = [row for row in chosen if is_headless(row, stand_ins)]
    if not headless:
        return
    able = [row for row in chosen if row not in headless]
    numbers = [str(number) for number, row in enumerate(published_rows(table), start=1) if row in able]
    named = " and ".join(f"{name}={stand_ins[name]}" for name in headless[0].sources)
    remedy = f"choose --rows {','.join(numbers)}" if able else "choose rows of another source as well"
    raise RunError(
        f"--stand-in {named}: a probe has no source head, and {headless[0].name} has no other source; "
        f"{remedy}, or train with the probe alone by "
        f"`sskt sweep --sources {stand_ins[headless[0].sources[0]]}`"
    )


def _is_probe(source: str, stand_ins: Mapping[str, str]) -> bool:
    """Whether a probe stands in for a published source."""
    return source in stand_ins and kind_of(stand_ins[source]).is_fitted


def chosen_rows(table: str, rows: Sequence[str], targets: Sequence[str] = ()) -> list[Published]:
    """The selected rows, of all targets or of some: those that are run, and cited rows, which are never run.

    Raises RunError if nothing is selected, and for a target that the table does not have.
    """
    listed = published_rows(table)
    known = list(dict.fromkeys(row.target for row in listed))
    if unknown := [name for name in targets if name not in known]:
        raise RunError(f"--target is {unknown[0]!r}, table {table} has {', '.join(known)}; name one of these")
    chosen = [
        row
        for number, row in enumerate(listed, start=1)
        if _is_chosen(number, row, rows) and (not targets or row.target in targets)
    ]
    if not chosen:
        names = ", ".join(row.name for row in listed[:3])
        raise RunError(f"--rows chooses none of the {len(listed)} rows of table {table} ({names}, ...)")
    return chosen


def published_sources() -> list[str]:
    """The sources of all published rows."""
    return list(dict.fromkeys(source for row in published_rows() for source in row.sources))


def initial_weights(row: Published) -> tuple[str, ...]:
    """The name of the weights that a fine-tuned row's student starts from; empty for other rows."""
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
    """One row with its marks, as far as known without data and weights."""
    sources = tuple(stand_ins.get(name, name) for name in row.sources)
    overrides = shrink.overrides(recipe_for(row.target))
    if row.primary_loss:
        overrides["primary_loss"] = row.primary_loss
    if row.aux_loss:
        overrides["aux_loss"] = row.aux_loss
    marks = shrink.marks()
    for name in (name for name in row.sources if name in stand_ins):
        headless = ", which teaches the target's classes and has no source head"
        marks.append(
            Mark("stand-in", f"{name} is {stand_ins[name]}{headless if _is_probe(name, stand_ins) else ''}")
        )
    attempt = Attempt(row, sources, overrides, marks)
    if attempt.teacher:
        marks.append(Mark("teacher", f"teacher: {attempt.teacher.row.model} of ours, from scratch"))
    if row.method == "dml":  # SSKT section 4.4: "the same conditions as the source and target networks"
        other = "3D ResNet50" if row.model.startswith("resnet3d") else "ResNet50"
        marks.append(Mark("peers", f"the peers are twins, where the paper's second one is a {other}"))
    marks += departures(attempt.setup)
    return attempt
