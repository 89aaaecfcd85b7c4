"""Accuracy over temperature, alpha and other settings (SSKT figure 4, supplement figure 2), compared with the
student from scratch; all runs share one store.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline.data import DEFAULT_VIEWS, Augmentation
from pipeline.runtime import Execution, Paths, World, coerce, csv_text, join_world, write_figure, write_result
from pipeline.studies.series import check_settings, precompute_once, train_or_resume
from pipeline.studies.sweep_figure import draw, panel_title
from pipeline.studies.sweep_grid import Grid, Panel, Point, has_heads, panels_of
from pipeline.train import DivergedError, read_config
from sskt.errors import RunError

log = logging.getLogger(__name__)

_LONGEST_NAME = 48  # characters of a target's name in the title, so that the title's end is not cut off
_ALWAYS_SHOWN = ("model", "transfer_module", "aux_loss")  # settings with a column in every table


def sweep(
    target: str,
    grid: Grid,
    *,
    out: Path,
    paths: Paths,
    execution: Execution,
    augmentation: Augmentation | None = None,
    model: str | None = None,
    limit: int | None = None,
    views: int = DEFAULT_VIEWS,
    amp: str = "auto",
    overrides: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Train every student of the grid, and write sweep.csv (after every point) and sweep.png to `out`;
    finished runs are skipped. `views` is ignored where the grid varies it.

    Returns one dict per student, those from scratch first: one, or one for each choice of varied settings
    that they read. A student that would not read what tells two points apart is trained once. A run that
    diverges is counted and the others continue, but with several ranks it stops all. Raises RunError for an
    empty grid and for settings that no run can have, before anything runs, and whatever the stages raise.
    """
    target, out = coerce.text(target, "target"), coerce.path(out, "out")
    overrides = {"model": model, **(overrides or {})}
    panels = _panels(grid, views, overrides)
    every = list(chain.from_iterable(panels))
    points = {point.name: point for point in (*(panel.scratch for panel in every), *_taught(every))}
    common: dict[str, Any] = {
        "augmentation": augmentation or Augmentation(),
        "paths": paths,
        "execution": execution,
        "limit": limit,
    }
    with join_world(execution.device) as world:
        for point in points.values():
            check_settings(target, **common, amp=amp, **point.settings)
        _tell_unread(every)
        sources = list(dict.fromkeys(name for names in grid.sources for name in names))
        precompute_once(target, sources, views=max(grid.vary.get("views", (views,))), **common)
        rows: dict[str, dict[str, Any]] = {}
        for name, point in points.items():
            settings = {**common, "paths": paths.of(point.sources), "amp": amp}
            values = _values(target, point, grid.seeds, out, world, settings)
            rows[name] = _row(point, out, values, grid)
            if len(rows) == 1:
                split = _on_compared_split("test", read_config(out / f"{name}-seed0"))
                as_papers = ", as in the paper's figure 4" if split == "test" else ""
                log.info(f"students are compared by the accuracy on the {split} split{as_papers}")
            if world.is_first:
                write_result(out / "sweep.csv", _csv(list(rows.values())))
        if world.is_first and any(rows[panel.scratch.name]["mean"] is not None for panel in every):
            title = _title(out / f"{every[0].scratch.name}-seed0", list(rows.values()), grid)
            titles = [title, *map(panel_title, every)]
            write_figure(out / "sweep.png", lambda: draw(title, panels, rows), *titles)
    return list(rows.values())


def _panels(grid: Grid, views: int, overrides: Mapping[str, Any]) -> list[list[Panel]]:
    """`panels_of`. Raises RunError for an empty grid, and for settings that are set twice or never read."""
    if not all((grid.sources, grid.temperatures, grid.alphas)) or grid.seeds < 1:
        raise RunError("a sweep needs at least one source, temperature, alpha and seed")
    if twice := [name for name, value in overrides.items() if value is not None and name in grid.vary]:
        raise RunError(
            f"the grid varies {twice[0]}, and overrides set it to {overrides[twice[0]]}; leave one out"
        )
    panels = panels_of(grid, views, overrides)
    _require_read(grid, overrides, list(chain.from_iterable(panels)))
    return panels


def _require_read(grid: Grid, overrides: Mapping[str, Any], panels: Sequence[Panel]) -> None:
    """Raise RunError for a setting that would change nothing."""
    read = {name for point in _taught(panels) for name in point.settings}
    named = " and ".join("+".join(sources) for sources in grid.sources)
    told = {name: f"{name} is {value}" for name, value in overrides.items() if value is not None}
    for name, said in {**told, **{name: f"the grid varies {name}" for name in grid.vary}}.items():
        if name not in read:
            raise RunError(f"{said}, which no student of {named} reads; leave it out, or name other sources")


def _taught(panels: Sequence[Panel]) -> list[Point]:
    return [point for panel in panels for point in panel.points]


def _tell_unread(panels: Sequence[Panel]) -> None:
    """Say where temperatures and alphas do not matter, so that there are fewer runs than asked for."""
    for sources in dict.fromkeys(panel.sources for panel in panels if not has_heads(panel.sources)):
        log.info(
            f"{sources[0]} teaches alone, without source heads: temperature, alpha and other settings of "
            f"source heads do not matter, and equal runs are trained once"
        )
    if any(has_heads(panel.sources) and panel.temperatures == (None,) for panel in panels):
        log.info("--aux-loss cosine and smooth-l1 read no temperature: one run for all of them")


def _values(
    target: str, point: Point, seeds: int, out: Path, world: World, settings: Mapping[str, Any]
) -> list[float | None]:
    """The metric for each seed; None if it diverged."""
    values: list[float | None] = []
    for seed in range(seeds):
        name = f"{point.name}-seed{seed}"
        log.info(name)
        try:
            summary = train_or_resume(target, out / name, seed=seed, **point.settings, **settings)
        except DivergedError as error:
            if world.size > 1:  # the other ranks would wait for this one
                raise
            log.info(f"{name}: {error}")
            values.append(None)
        else:
            values.append(float(summary[_on_compared_split(summary["metric"], summary)]))
    return values


def _row(point: Point, out: Path, values: Sequence[float | None], grid: Grid) -> dict[str, Any]:
    """One student, with the mean over the seeds that did not diverge; settings that it does not read are
    None.
    """
    config = read_config(out / f"{point.name}-seed0")
    heads = bool(point.sources) and has_heads(point.sources)
    varied = {name: point.settings.get(name) for name in grid.vary if name not in _ALWAYS_SHOWN}
    reached = [value for value in values if value is not None]
    return {
        "target": config["target"],
        "model": config["model"],
        "sources": "+".join(point.sources),
        "transfer_module": point.settings.get("transfer_module", False) if heads else None,
        "aux_loss": config["aux_loss"] if heads else None,
        **varied,
        "temperature": config["temperature"] if "temperature" in point.settings else None,
        "alpha": config["alpha"] if "alpha" in point.settings else None,
        "mean": statistics.mean(reached) if reached else None,
        "std": statistics.stdev(reached) if len(reached) > 1 else None,
        "seeds": len(reached),
        "diverged": len(values) - len(reached),
    }


def _title(run: Path, rows: Sequence[Mapping[str, Any]], grid: Grid) -> str:
    """The figure's title, from one run's config and the table: what all runs share."""
    config = read_config(run)
    split = _on_compared_split("test", config)
    metric = f"{split} mAP" if config["primary_loss"] == "bce" else f"{split} top-1"
    target, epochs = config["target"], config["epochs"]
    if len(target) > _LONGEST_NAME:
        target = target[: _LONGEST_NAME - 1] + "…"
    aux_loss = next((row["aux_loss"] for row in rows if row["aux_loss"]), None)
    shared = {
        "model": config["model"],
        "epochs": f"{epochs} epoch{'' if epochs == 1 else 's'}",
        "aux_loss": f"auxiliary loss {aux_loss}" if aux_loss else "",
    }
    words = [words for name, words in shared.items() if words and name not in grid.vary]
    return ", ".join((target, *words, f"{metric} in %"))


def _on_compared_split(name: str, settings: Mapping[str, Any]) -> str:
    """A metric's name on the split that students are compared on: val if epochs are chosen on it."""
    return name.replace("test", "val", 1) if settings.get("chosen_on") == "val" else name


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return csv_text([list(rows[0]), *([row[name] for name in rows[0]] for row in rows)]).encode()
