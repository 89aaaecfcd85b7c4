"""Accuracy over temperature and alpha (SSKT figure 4, supplement figure 2), compared with the student from
scratch; all runs share one store.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cache import digest, write_durably
from pipeline.data import DEFAULT_VIEWS, Augmentation
from pipeline.runtime import Execution, Paths, World, boxes, coerce, fitted, join_world, lettering
from pipeline.studies.series import precompute_once, train_or_resume
from pipeline.train.divergence import DivergedError
from pipeline.train.run_folder import read_config
from sskt.errors import RunError
from sskt.sources import at_output, kind_of, output_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)
Panel = tuple[tuple[str, ...], bool]  # sources, transfer module

_LINE_IN = 0.16  # height of a line of a title
_LONGEST_NAME = 48  # characters of a target's name in the title, so that the title's end is not cut off


@dataclass(frozen=True, slots=True)
class Grid:
    """The settings to sweep: every combination, `seeds` times each."""

    sources: tuple[tuple[str, ...], ...]  # sets of sources
    temperatures: tuple[float, ...]
    alphas: tuple[float, ...]
    transfer_modules: tuple[bool, ...] = (False,)
    seeds: int = 1

    def __post_init__(self) -> None:
        """A single value counts as a list, a single name as a set. Raises RunError for anything else."""
        sources: Any = self.sources
        modules: Any = self.transfer_modules
        sets = [sources] if isinstance(sources, str) else sources
        object.__setattr__(self, "sources", tuple(coerce.texts(names, "sources") for names in sets))
        object.__setattr__(self, "temperatures", coerce.numbers(self.temperatures, "temperatures"))
        object.__setattr__(self, "alphas", coerce.numbers(self.alphas, "alphas"))
        object.__setattr__(
            self, "transfer_modules", (modules,) if isinstance(modules, bool) else tuple(modules)
        )
        object.__setattr__(self, "seeds", coerce.whole(self.seeds, "seeds"))

    def panels(self) -> list[Panel]:
        """The figure's panels: every set of sources with every choice of transfer module."""
        return list(product(self.sources, self.transfer_modules))


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
    slugs = _slugs(grid.sources)
    for (sources, module), temperature, alpha in product(grid.panels(), grid.temperatures, grid.alphas):
        settings = {
            **overrides, "sources": sources, "labels": "cached", "views": views, "transfer_module": module,
            "temperature": temperature, "alpha": alpha,
        }  # fmt: skip
        name = f"{slugs[sources]}{'-tm' if module else ''}-T{_number(temperature)}-alpha{_number(alpha)}"
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
    """Save the figure of `_draw` as a PNG."""
    image = io.BytesIO()
    with lettering(title, *map(_panel_title, grid.panels())) as missing:
        _draw(title, grid, rows).savefig(image, dpi=150, format="png")
    _write(path, image.getvalue())
    if missing:
        log.info(f"{path}: {boxes(missing)}")


def _draw(title: str, grid: Grid, rows: Sequence[Mapping[str, Any]]) -> Figure:
    """One panel per set of sources and transfer module: temperature on x, alpha on y. White is the student
    from scratch, `rows[0]`; blue is better, red is worse.
    """
    from matplotlib.figure import Figure

    panels = grid.panels()
    n_columns, n_rows = len(grid.transfer_modules), len(grid.sources)
    width, height = 1.7 + 0.75 * len(grid.temperatures), 1.4 + 0.5 * len(grid.alphas)
    size = (max(5.0, 1.2 + width * n_columns), max(3.0, 0.7 + height * n_rows))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    scratch, *means = (math.nan if row["mean"] is None else row["mean"] for row in rows)
    n_diverged = [row["diverged"] for row in rows[1:]]
    reach = max([0.1, *(abs(mean - scratch) for mean in means if math.isfinite(mean))])
    each = len(grid.temperatures) * len(grid.alphas)
    for at, axis in enumerate(axes.flat):
        table = np.array(means[at * each : (at + 1) * each]).reshape(len(grid.temperatures), -1).T
        image = axis.imshow(
            table - scratch, origin="lower", cmap="RdBu", vmin=-reach, vmax=reach, aspect="auto"
        )
        axis.set_xticks(range(len(grid.temperatures)), [f"{t:g}" for t in grid.temperatures])
        axis.set_yticks(range(len(grid.alphas)), [f"{a:g}" for a in grid.alphas])
        axis.set_xlabel("temperature")
        axis.set_ylabel("alpha")
        for (y, x), value in np.ndenumerate(table):
            colour = "white" if abs(value - scratch) > 0.6 * reach else "black"
            n = n_diverged[at * each + x * len(grid.alphas) + y]
            text = "diverged" if math.isnan(value) else f"{value:.1f}" + (f"\n{n} div." if n else "")
            axis.text(x, y, text, ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes, label="percentage points\nover scratch", shrink=0.8)
    _entitle(figure, f"{title}; from scratch {scratch:.1f} %", axes, panels)
    return figure


def _entitle(figure: Figure, title: str, axes: NDArray[Any], panels: Sequence[Panel]) -> None:
    """Write the figure's title and those of its panels, `axes` (rows, columns), wrapped to fit, and make room
    for them.
    """
    figure.draw_without_rendering()  # lays out the panels; titles above them only change their heights
    room_px = 0.96 * figure.get_figwidth() * figure.dpi
    title = fitted(title, figure, width_px=room_px, size_pt=10, lines=4)
    figure.suptitle(title, fontsize=10)
    n_more = 0
    for axis, panel in zip(axes.flat, panels, strict=True):
        room_px = 0.98 * axis.get_window_extent().width
        text = fitted(_panel_title(panel), figure, width_px=room_px, size_pt=9, lines=4)
        axis.set_title(text, fontsize=9)
        n_more = max(n_more, text.count("\n"))
    n_more = title.count("\n") + len(axes) * n_more
    figure.set_figheight(figure.get_figheight() + _LINE_IN * n_more)


def _panel_title(panel: Panel) -> str:
    sources, module = panel
    names = " + ".join(_short(name) for name in sources)
    return f"transfer module, {names}" if module else names


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


def _short(name: str) -> str:
    """program:/a/b/net.pt2 as net, and its embedding as net@embedding."""
    path = kind_of(name).path(name)
    return name if path is None else at_output(path.stem, output_of(name))


def _slugs(panels: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """The part of a folder's name that stands for each set of sources: short, plus a digest if two short
    names collide.
    """
    short = {sources: "+".join(_short(name).replace(":", "-") for name in sources) for sources in panels}
    taken = Counter(short.values())
    return {
        sources: slug if taken[slug] == 1 else f"{slug}-{digest({'sources': list(sources)})[:8]}"
        for sources, slug in short.items()
    }


def _number(value: float) -> str:
    """The shortest text that keeps two numbers apart, with 3.0 as 3."""
    return repr(float(value)).removesuffix(".0")


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, data)
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error.strerror or error}); make room or choose another --out"
        ) from error
