"""The settings of a sweep, its panels and points, and the names of its runs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from cache import digest
from pipeline.runtime import coerce
from pipeline.train import Settings, readers_of
from sskt.errors import RunError
from sskt.losses import VECTOR_LOSSES
from sskt.methods import method_named
from sskt.sources import asked_of, at_output, kind_of, output_of

_OF_PROBE = ("probe_weight", "probe_temperature", "probe_views")
_OF_STUDENTS_TAUGHT = (*_OF_PROBE, "labelled_share")  # which a student from scratch, of labels alone, lacks
# settings of a run that a sweep has its own for, that all of its runs share, or that are lists or files
_NOT_VARIED = (
    "method", "preset", "sources", "labels", "teacher_bn", "temperature", "alpha", "milestones", "unlabelled",
    "labelled_list", "teacher_temperature", "amp", "compiled", "deterministic",
)  # fmt: skip
VARIABLE = (
    "model",
    *(name for name in Settings.__annotations__ if name not in _NOT_VARIED and "sskt" in readers_of(name)),
)


@dataclass(frozen=True, slots=True)
class Grid:
    """The settings to sweep: every combination, `seeds` times each."""

    sources: tuple[tuple[str, ...], ...]  # sets of sources
    temperatures: tuple[float, ...]
    alphas: tuple[float, ...]
    vary: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # values of settings, some of VARIABLE
    seeds: int = 1

    def __post_init__(self) -> None:
        """A single value counts as a list, a single name as a set. Raises RunError for anything else."""
        sources: Any = self.sources
        sets = [sources] if isinstance(sources, str) else sources
        object.__setattr__(self, "sources", tuple(coerce.texts(names, "sources") for names in sets))
        object.__setattr__(self, "temperatures", coerce.numbers(self.temperatures, "temperatures"))
        object.__setattr__(self, "alphas", coerce.numbers(self.alphas, "alphas"))
        object.__setattr__(self, "vary", {name: _values(name, self.vary[name]) for name in self.vary})
        object.__setattr__(self, "seeds", coerce.whole(self.seeds, "seeds"))


@dataclass(frozen=True, slots=True)
class Point:
    """One student of a sweep."""

    name: str  # of its runs' folders, without the seed
    sources: tuple[str, ...]
    settings: dict[str, Any]  # of `train`


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel of the figure: a set of sources with one choice of the varied settings.

    Settings that its students do not read are left out: without source heads, of temperatures and alphas as
    well.
    """

    sources: tuple[str, ...]
    varied: dict[str, Any]
    temperatures: tuple[float | None, ...]
    alphas: tuple[float | None, ...]
    points: tuple[Point, ...]  # every temperature with every alpha
    scratch: Point  # the student it is compared with


def panels_of(grid: Grid, views: int, overrides: Mapping[str, Any]) -> list[list[Panel]]:
    """The figure's panels: a row per set of sources, a column per choice of the varied settings. `overrides`
    are settings of all runs.
    """
    names = sorted(grid.vary, key=lambda name: (name != "transfer_module", name))
    slugs = slugs_of(grid.sources)
    choices = [
        dict(zip(names, values, strict=True)) for values in product(*(grid.vary[name] for name in names))
    ]
    common = {"views": views, **overrides}
    return [
        [_panel(grid, sources, slugs[sources], choice, common) for choice in choices]
        for sources in grid.sources
    ]


def has_heads(sources: Sequence[str]) -> bool:
    """Whether a student of these sources has source heads: if any is not a probe."""
    return not all(kind_of(name).is_fitted for name in sources)


def _panel(
    grid: Grid, sources: tuple[str, ...], slug: str, choice: dict[str, Any], common: dict[str, Any]
) -> Panel:
    unread = _unread(sources, {**common, **choice})
    varied = {name: value for name, value in choice.items() if name not in unread}
    shared = {name: value for name, value in common.items() if name not in unread} | varied
    temperatures, alphas = (
        (None,) if name in unread else values
        for name, values in (("temperature", grid.temperatures), ("alpha", grid.alphas))
    )
    start = slug + "".join(_suffix(name, value) for name, value in varied.items())
    points = []
    for temperature, alpha in product(temperatures, alphas):
        settings = {**shared, "sources": sources, "labels": "cached"}
        name = start
        if temperature is not None:
            settings["temperature"], name = temperature, f"{name}-T{number_text(temperature)}"
        if alpha is not None:
            settings["alpha"], name = alpha, f"{name}-alpha{number_text(alpha)}"
        points.append(Point(name, sources, settings))
    scratch = _scratch({**common, **choice}, choice)
    return Panel(sources, varied, temperatures, alphas, tuple(points), scratch)


def _unread(sources: Sequence[str], settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The settings that a student of these sources does not read."""
    if not has_heads(sources):
        return method_named("sskt").of_heads
    unread = () if any(kind_of(name).is_fitted for name in sources) else _OF_PROBE
    return (*unread, "temperature") if settings.get("aux_loss") in VECTOR_LOSSES else unread


def _scratch(settings: Mapping[str, Any], choice: Mapping[str, Any]) -> Point:
    """The student from scratch, with those of the settings that it reads."""
    read = {
        name
        for name in settings
        if name not in _OF_STUDENTS_TAUGHT and (name == "model" or "scratch" in readers_of(name))
    }
    name = "scratch" + "".join(_suffix(name, value) for name, value in choice.items() if name in read)
    kept = {name: value for name, value in settings.items() if name in read}
    return Point(name, (), {**kept, "method": "scratch"})


def _values(name: str, values: Any) -> tuple[Any, ...]:
    """The values of a setting, each as a run's config holds it. Raises RunError for a setting that a sweep
    cannot vary, and for no values.
    """
    if name not in VARIABLE:
        raise RunError(f"vary names {name!r}, expected one of {', '.join(VARIABLE)}")
    several = [values] if isinstance(values, str | bool | int | float) else list(values)
    if not several:
        raise RunError(f"vary has no value of {name}; give it one, or leave it out")
    return tuple(dict.fromkeys(coerce.setting(name, value) for value in several))


def short_name(name: str) -> str:
    """program:/a/b/net.pt2 as net, and its embedding as net@embedding; a probe with its sources' short
    names.
    """
    if kind_of(name).is_fitted:
        return ":".join(filter(None, ("probe", "+".join(map(short_name, asked_of(name))))))
    path = kind_of(name).path(name)
    return name if path is None else at_output(path.stem, output_of(name))


def slugs_of(panels: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """The part of a folder's name that stands for each set of sources: short, plus a digest if two short
    names collide.
    """
    short = {sources: "+".join(short_name(name).replace(":", "-") for name in sources) for sources in panels}
    taken = Counter(short.values())
    return {
        sources: slug if taken[slug] == 1 else f"{slug}-{digest({'sources': list(sources)})[:8]}"
        for sources, slug in short.items()
    }


def _suffix(name: str, value: Any) -> str:
    """The part of a folder's name that stands for a varied setting."""
    if name == "transfer_module":
        return "-tm" if value else ""
    return f"-{name.replace('_', '-')}-{re.sub(r'[^A-Za-z0-9._+-]', '_', value_text(value))}"


def value_text(value: Any) -> str:
    """A value of a setting as text: yes, no, a number or a word."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number_text(value) if isinstance(value, int | float) else str(value)


def number_text(value: float) -> str:
    """The shortest text that keeps two numbers apart, with 3.0 as 3."""
    return repr(float(value)).removesuffix(".0")
