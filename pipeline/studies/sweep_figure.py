"""The figure of a sweep: a row of panels per set of sources, a column per choice of varied settings (SSKT
figure 4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.runtime import fitted
from pipeline.studies.sweep_grid import Panel, short_name, value_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_LINE_IN = 0.16  # height of a line of a title

Rows = Mapping[str, Mapping[str, Any]]  # of the table, by the names of points


def draw(title: str, panels: Sequence[Sequence[Panel]], rows: Rows) -> Figure:
    """Panels in rows and columns: temperature on x, alpha on y. White is the student from scratch with the
    same settings; blue is better, red is worse. A panel whose students are those of one on its left stays
    empty.
    """
    from matplotlib.figure import Figure

    every = list(chain.from_iterable(panels))
    width = 1.7 + 0.75 * max(len(panel.temperatures) for panel in every)
    height = 1.4 + 0.5 * max(len(panel.alphas) for panel in every)
    size = (max(5.0, 1.2 + width * len(panels[0])), max(3.0, 0.7 + height * len(panels)))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(panels), len(panels[0]), squeeze=False)
    gains = [
        _mean(rows[point.name]) - _mean(rows[panel.scratch.name]) for panel in every for point in panel.points
    ]
    reach = max([0.1, *(abs(gain) for gain in gains if math.isfinite(gain))])
    for row_of_axes, row in zip(axes, panels, strict=True):
        drawn: list[tuple[Any, ...]] = []
        for axis, panel in zip(row_of_axes, row, strict=True):
            students = (panel.scratch, *panel.points)
            if students in drawn:
                axis.set_axis_off()
            else:
                image = _draw_panel(axis, panel, rows, reach)
            drawn.append(students)
    figure.colorbar(image, ax=axes, label="percentage points\nover scratch", shrink=0.8)
    scratches = {panel.scratch.name: _mean(rows[panel.scratch.name]) for panel in every}
    shared = f"; from scratch {next(iter(scratches.values())):.1f} %" if len(scratches) == 1 else ""
    titles = [
        "" if not axis.axison
        else panel_title(panel) + ("" if shared else f"; from scratch {scratches[panel.scratch.name]:.1f} %")
        for axis, panel in zip(axes.flat, every, strict=True)
    ]  # fmt: skip
    _entitle(figure, f"{title}{shared}", axes, titles)
    return figure


def _draw_panel(axis: Axes, panel: Panel, rows: Rows, reach: float) -> AxesImage:
    """The table of one panel, coloured from -`reach` to `reach` points over its student from scratch."""
    shape = (len(panel.temperatures), len(panel.alphas))
    table = np.array([_mean(rows[point.name]) for point in panel.points]).reshape(shape).T
    n_diverged = np.array([rows[point.name]["diverged"] for point in panel.points]).reshape(shape).T
    gains = table - _mean(rows[panel.scratch.name])
    image = axis.imshow(gains, origin="lower", cmap="RdBu", vmin=-reach, vmax=reach, aspect="auto")
    axis.set_xticks(range(shape[0]), ["any" if t is None else f"{t:g}" for t in panel.temperatures])
    axis.set_yticks(range(shape[1]), ["any" if a is None else f"{a:g}" for a in panel.alphas])
    axis.set_xlabel("temperature")
    axis.set_ylabel("alpha")
    for (y, x), value in np.ndenumerate(table):
        colour = "white" if abs(gains[y, x]) > 0.6 * reach else "black"
        n = n_diverged[y, x]
        text = "diverged" if math.isnan(value) else f"{value:.1f}" + (f"\n{n} div." if n else "")
        axis.text(x, y, text, ha="center", va="center", color=colour, fontsize=8)
    return image


def _mean(row: Mapping[str, Any]) -> float:
    return math.nan if row["mean"] is None else float(row["mean"])


def _entitle(figure: Figure, title: str, axes: NDArray[Any], titles: Sequence[str]) -> None:
    """Write the figure's title and those of its panels, `axes` (rows, columns), wrapped to fit, and make room
    for them.
    """
    figure.draw_without_rendering()  # lays out the panels; titles above them only change their heights
    room_px = 0.96 * figure.get_figwidth() * figure.dpi
    title = fitted(title, figure, width_px=room_px, size_pt=10, lines=4)
    figure.suptitle(title, fontsize=10)
    n_more = 0
    for axis, whole in zip(axes.flat, titles, strict=True):
        room_px = 0.98 * axis.get_window_extent().width
        text = fitted(whole, figure, width_px=room_px, size_pt=9, lines=4)
        axis.set_title(text, fontsize=9)
        n_more = max(n_more, text.count("\n"))
    n_more = title.count("\n") + len(axes) * n_more
    figure.set_figheight(figure.get_figheight() + _LINE_IN * n_more)


def panel_title(panel: Panel) -> str:
    """The title of a panel: its varied settings and its sources."""
    words = [_words(name, value) for name, value in panel.varied.items()]
    return ", ".join(filter(None, (*words, " + ".join(map(short_name, panel.sources)))))


def _words(name: str, value: Any) -> str:
    """A varied setting in words; without a transfer module none are needed."""
    if name == "transfer_module":
        return "transfer module" if value else ""
    return f"{name.replace('_', ' ')} {value_text(value)}"
