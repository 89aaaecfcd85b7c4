"""Accuracy over temperature and alpha (SSKT figure 4, supplement figure 2), beside the student from scratch,
from one store for all runs.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cache.files import write_durably
from pipeline.api.again import train_once
from pipeline.api.lesson import Supervision
from pipeline.api.settings import Tuning
from pipeline.api.stage_one import run_precompute
from pipeline.choices import DEFAULT_VIEWS, Augmentation, Places
from pipeline.execution import Execution
from pipeline.run import read_summary
from sskt.errors import RunError

Say = Callable[[str], None]
Panel = tuple[tuple[str, ...], bool]  # sources, transfer module


@dataclass(frozen=True, slots=True)
class Grid:
    """What is swept over: every combination, `seeds` times each."""

    sources: tuple[tuple[str, ...], ...]  # sets of sources
    temperatures: tuple[float, ...]
    alphas: tuple[float, ...]
    transfer_modules: tuple[bool, ...] = (False,)
    seeds: int = 1

    def panels(self) -> list[Panel]:
        """A picture's panels: every set of sources without and with transfer module."""
        return list(product(self.sources, self.transfer_modules))


def run_sweep(
    target: str,
    grid: Grid,
    *,
    out: Path,
    places: Places,
    execution: Execution,
    augmentation: Augmentation | None = None,
    model: str | None = None,
    limit: int | None = None,
    views: int = DEFAULT_VIEWS,
    amp: str = "auto",
    overrides: Mapping[str, Any] | None = None,
    say: Say = print,
) -> list[dict[str, Any]]:
    """Train every student of the grid, and write sweep.csv and sweep.png to `out`; finished runs are skipped.

    Returns one row of plain data for each point, the student from scratch first. Raises RunError for an empty
    grid, and what the stages raise.
    """
    if not all((grid.sources, grid.temperatures, grid.alphas, grid.transfer_modules)) or grid.seeds < 1:
        raise RunError("a sweep needs at least one source, temperature, alpha and seed")
    shown: dict[str, Any] = {
        "augmentation": augmentation or Augmentation(),
        "places": places,
        "execution": execution,
        "limit": limit,
        "say": say,
    }
    every = list(dict.fromkeys(name for names in grid.sources for name in names))
    run_precompute([target], every, views=views, **shown)

    def values(label: str, taught: Supervision, settings: Mapping[str, Any]) -> list[float]:
        """The figure of every seed."""
        mine = {name: path for name, path in places.weights.items() if name in taught.sources}
        found = []
        for seed in range(grid.seeds):
            name = f"{label}-seed{seed}"
            say(name)
            summary = train_once(
                target,
                out / name,
                **{**shown, "places": Places(places.data_dir, places.cache_dir, mine)},
                supervision=taught,
                model=model,
                seed=seed,
                tuning=Tuning(amp=amp),
                overrides={**(overrides or {}), **settings},
            )
            found.append(float(summary[summary["metric"]]))
        return found

    scratch = values("scratch", Supervision(method="scratch", views=views), {"aux_loss": None})
    rows = [_row(scratch)]
    for (sources, module), temperature, alpha in product(grid.panels(), grid.temperatures, grid.alphas):
        taught = Supervision(sources=sources, labels="cached", views=views, transfer_module=module)
        point = {"temperature": temperature, "alpha": alpha}
        label = f"{_slug(sources, module)}-T{temperature:g}-alpha{alpha:g}"
        rows.append(_row(values(label, taught, point), sources=sources, transfer_module=module, **point))
    _write(out / "sweep.csv", _csv(rows))
    picture = io.BytesIO()
    _draw(_title(out / "scratch-seed0"), grid, rows).savefig(picture, dpi=150, format="png")
    _write(out / "sweep.png", picture.getvalue())
    return rows


def _row(
    values: list[float],
    sources: tuple[str, ...] = (),
    transfer_module: bool | None = None,
    temperature: float | None = None,
    alpha: float | None = None,
) -> dict[str, Any]:
    """One point of the grid; without sources the student from scratch."""
    return {
        "sources": "+".join(sources),
        "transfer_module": transfer_module,
        "temperature": temperature,
        "alpha": alpha,
        "mean": statistics.mean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "seeds": len(values),
    }


def _draw(title: str, grid: Grid, rows: Sequence[Mapping[str, Any]]) -> Figure:
    """A panel for each set of sources and transfer module: alpha upwards, temperature to the right. White is
    the student from scratch, `rows[0]`; blue is better, red is worse.
    """
    panels = grid.panels()
    n_columns, n_rows = len(grid.transfer_modules), len(grid.sources)
    width, height = 1.7 + 0.75 * len(grid.temperatures), 1.4 + 0.5 * len(grid.alphas)
    figure = Figure(figsize=(1.2 + width * n_columns, 0.7 + height * n_rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    scratch, *means = (row["mean"] for row in rows)
    reach = max(max(abs(mean - scratch) for mean in means), 0.1)
    each = len(grid.temperatures) * len(grid.alphas)
    for at, (axis, (sources, module)) in enumerate(zip(axes.flat, panels, strict=True)):
        table = np.array(means[at * each : (at + 1) * each]).reshape(len(grid.temperatures), -1).T
        image = axis.imshow(
            table - scratch, origin="lower", cmap="RdBu", vmin=-reach, vmax=reach, aspect="auto"
        )
        axis.set_xticks(range(len(grid.temperatures)), [f"{t:g}" for t in grid.temperatures])
        axis.set_yticks(range(len(grid.alphas)), [f"{a:g}" for a in grid.alphas])
        names = " + ".join(_short(name) for name in sources)
        axis.set_title(f"{names}{', transfer module' if module else ''}", fontsize=9)
        axis.set_xlabel("temperature")
        axis.set_ylabel("alpha")
        for (y, x), value in np.ndenumerate(table):
            colour = "white" if abs(value - scratch) > 0.6 * reach else "black"
            axis.text(x, y, f"{value:.1f}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes, label="percentage points over scratch", shrink=0.8)
    figure.suptitle(f"{title}; from scratch {scratch:.1f} %", fontsize=10)
    return figure


def _title(run: Path) -> str:
    """What was trained, by one of the runs."""
    summary = read_summary(run) or {}
    metric = {"test_top1": "test top-1", "test_map": "test mAP"}[summary["metric"]]
    return f"{summary['target']}, {summary['model']}, {summary['epochs']} epochs, {metric} in %"


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def _short(name: str) -> str:
    """program:/a/b/net.pt2 as net."""
    return Path(name.partition(":")[2]).stem if name.startswith(("program:", "run:")) else name


def _slug(sources: tuple[str, ...], module: bool) -> str:
    return "+".join(_short(name).replace(":", "-") for name in sources) + ("-tm" if module else "")


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, data)
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error.strerror or error}); make room or choose another --out"
        ) from error
