"""The figure of a sweep: one panel per set of sources and transfer module (SSKT figure 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.runtime import fitted
from pipeline.studies.sweep_grid import Grid, Panel, short_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINE_IN = 0.16  # height of a line of a title


def draw(title: str, grid: Grid, rows: Sequence[Mapping[str, Any]]) -> Figure:
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
        text = fitted(panel_title(panel), figure, width_px=room_px, size_pt=9, lines=4)
        axis.set_title(text, fontsize=9)
        n_more = max(n_more, text.count("\n"))
    n_more = title.count("\n") + len(axes) * n_more
    figure.set_figheight(figure.get_figheight() + _LINE_IN * n_more)


def panel_title(panel: Panel) -> str:
    """The title of a panel: its sources, and whether there is a transfer module."""
    sources, module = panel
    names = " + ".join(short_name(name) for name in sources)
    return f"transfer module, {names}" if module else names
