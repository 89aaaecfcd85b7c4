"""Accuracy over temperature and alpha (SSKT figure 4, supplement figure 2), compared with the student from
scratch; all runs share one store.
"""

from __future__ import annotations

import csv
import io
import logging
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from cache import write_durably
from pipeline.data import DEFAULT_VIEWS, Augmentation
from pipeline.runtime import Execution, Paths, World, boxes, coerce, join_world, lettering
from pipeline.studies.series import precompute_once, train_or_resume
from pipeline.studies.sweep_figure import draw, panel_title
from pipeline.studies.sweep_grid import Grid, number_text, slugs_of
from pipeline.train.divergence import DivergedError
from pipeline.train.run_folder import read_config
from sskt.errors import RunError

log = logging.getLogger(__name__)

_LONGEST_NAME = 48  # characters of a target's name in the title, so that the title's end is not cut off


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
    finished runs are skipped.

    Returns one dict per point, the student from scratch first. A run that diverges is counted and the others
    continue, but with several ranks it stops all. Raises RunError for an empty grid, and whatever the stages
    raise.
    """
    target, out = coerce.text(target, "target"), coerce.path(out, "out")
    if not all((grid.sources, grid.temperatures, grid.alphas, grid.transfer_modules)) or grid.seeds < 1:
        raise RunError("a sweep needs at least one source, temperature, alpha and seed")
    common: dict[str, Any] = {
        "augmentation": augmentation or Augmentation(),
        "paths": paths,
        "execution": execution,
        "limit": limit,
    }
    with join_world(execution.device) as world:
        sources = list(dict.fromkeys(name for names in grid.sources for name in names))
        precompute_once(target, sources, views=views, **common)
        settings = {**common, "model": model, "amp": amp}
        rows: list[dict[str, Any]] = []
        for point in _points(grid, views, overrides or {}):
            settings["paths"] = paths.of(point.sources)
            values = _values(target, point, grid.seeds, out, world, **settings)
            rows.append(_row(point, out, values))
            if len(rows) == 1:
                split = _on_compared_split("test", read_config(out / f"{point.name}-seed0"))
                as_papers = ", as in the paper's figure 4" if split == "test" else ""
                log.info(
                    f"temperatures and alphas are compared by the accuracy on the {split} split{as_papers}"
                )
            if world.is_first:
                _write(out / "sweep.csv", _csv(rows))
        if world.is_first and rows[0]["mean"] is not None:
            _draw_to(out / "sweep.png", _title(out / "scratch-seed0", rows[1]["aux_loss"]), grid, rows)
    return rows


@dataclass(frozen=True, slots=True)
class _Point:
    """One student of the grid."""

    name: str
    sources: tuple[str, ...]
    transfer_module: bool | None  # None: from scratch
    settings: dict[str, Any]  # of `train`


def _points(grid: Grid, views: int, overrides: Mapping[str, Any]) -> Iterator[_Point]:
    """Yield the student from scratch, then every combination."""
    scratch = {**overrides, "method": "scratch", "views": views, "aux_loss": None}
    yield _Point("scratch", (), None, scratch)
    slugs = slugs_of(grid.sources)
    for (sources, module), temperature, alpha in product(grid.panels(), grid.temperatures, grid.alphas):
        settings = {
            **overrides, "sources": sources, "labels": "cached", "views": views, "transfer_module": module,
            "temperature": temperature, "alpha": alpha,
        }  # fmt: skip
        slug = slugs[sources] + ("-tm" if module else "")
        name = f"{slug}-T{number_text(temperature)}-alpha{number_text(alpha)}"
        yield _Point(name, sources, module, settings)


def _values(
    target: str, point: _Point, seeds: int, out: Path, world: World, **settings: Any
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


def _row(point: _Point, out: Path, values: Sequence[float | None]) -> dict[str, Any]:
    """One point of the grid, with the mean over the seeds that did not diverge."""
    config = read_config(out / f"{point.name}-seed0")
    taught = point.transfer_module is not None
    reached = [value for value in values if value is not None]
    return {
        "target": config["target"],
        "model": config["model"],
        "sources": "+".join(point.sources),
        "transfer_module": point.transfer_module,
        "aux_loss": config["aux_loss"] if taught else None,
        "temperature": config["temperature"] if taught else None,
        "alpha": config["alpha"] if taught else None,
        "mean": statistics.mean(reached) if reached else None,
        "std": statistics.stdev(reached) if len(reached) > 1 else None,
        "seeds": len(reached),
        "diverged": len(values) - len(reached),
    }


def _draw_to(path: Path, title: str, grid: Grid, rows: Sequence[Mapping[str, Any]]) -> None:
    """Save the figure of `draw` as a PNG."""
    image = io.BytesIO()
    with lettering(title, *map(panel_title, grid.panels())) as missing:
        draw(title, grid, rows).savefig(image, dpi=150, format="png")
    _write(path, image.getvalue())
    if missing:
        log.info(f"{path}: {boxes(missing)}")


def _title(run: Path, aux_loss: str) -> str:
    """The figure's title, from one run's config."""
    config = read_config(run)
    split = _on_compared_split("test", config)
    metric = f"{split} mAP" if config["primary_loss"] == "bce" else f"{split} top-1"
    target, epochs = config["target"], config["epochs"]
    if len(target) > _LONGEST_NAME:
        target = target[: _LONGEST_NAME - 1] + "…"
    trained = f"{epochs} epoch{'' if epochs == 1 else 's'}"
    what = f"{target}, {config['model']}, {trained}, auxiliary loss {aux_loss}"
    return f"{what}, {metric} in %"


def _on_compared_split(name: str, settings: Mapping[str, Any]) -> str:
    """A metric's name on the split that students are compared on: val if epochs are chosen on it."""
    return name.replace("test", "val", 1) if settings.get("chosen_on") == "val" else name


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, data)
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error.strerror or error}); make room or choose another --out"
        ) from error
