"""A picture of accuracy by number of labels per class: one line per source, and one for all together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from pipeline.runtime import fitted, write_figure
from sskt.errors import RunError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_REMEDY = "choose another --picture"
_TITLE_PT, _LEGEND_PT = 10.0, 8.0
_WIDTH_IN, _HEIGHT_IN, _LINE_IN = 7.0, 4.6, 0.2


def draw_to(path: Path, report: Mapping[str, Any]) -> None:
    """Save the picture of a report (see `pipeline.studies.probe.run.probe`) as a PNG. Raises RunError if the
    file cannot be written.
    """
    names = (row["name"] for row in report["rows"])
    write_figure(path, lambda: _draw(report), report["target"], *names, remedy=_REMEDY)


def require_writable(path: Path) -> None:
    """Make the folder of a picture that will be drawn later. Raises RunError if none could be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error}); {_REMEDY}") from error


def _draw(report: Mapping[str, Any]) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    rows = report["rows"]
    figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN + _LINE_IN * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    room_px = 0.9 * _WIDTH_IN * figure.dpi
    for place, row in enumerate(rows):
        beside = 1.02 ** (place - len(rows) / 2)  # so that spreads do not cover each other
        together = len(row["sources"]) > 1
        points = row["curve"]
        axes.errorbar(
            [point["labels_per_class"] * beside for point in points],
            [point["accuracy"] for point in points],
            yerr=[point["spread"] or 0.0 for point in points],
            marker="o",
            markersize=4,
            capsize=2,
            linewidth=2.2 if together else 1.4,
            linestyle="-" if together else "--",
            label=fitted(row["name"], figure, width_px=room_px, size_pt=_LEGEND_PT, lines=1),
        )
    axes.axhline(report["chance"], color="#999999", linewidth=1, linestyle=":", label="knowing no image")
    axes.set_xscale("log")
    ticks = sorted({point["labels_per_class"] for row in rows for point in row["curve"]})
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="labels per class (last: all but the fold that is tested)")
    axes.set(ylabel=f"held-out {report['metric']} (%), ± spread over draws")
    axes.grid(alpha=0.3)
    title = f"{report['target']}: linear probes on stored rows, {report['labelled']:,} labelled samples"
    axes.set_title(fitted(title, figure, width_px=room_px, size_pt=_TITLE_PT, lines=2), fontsize=_TITLE_PT)
    figure.legend(frameon=False, fontsize=_LEGEND_PT, loc="outside lower center")
    return figure
