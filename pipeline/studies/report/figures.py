"""The pictures of a page: curves over the epochs, as SVG. Each is narrow, so that a phone shows it without
zoom.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from pipeline.runtime import fitted, lettering

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipeline.data import Pixels

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # by label: epochs and values

_SMALL_PX = 64  # images up to this side are kept exactly, and enlarged
_SIZE_IN = (3.9, 2.8)
_TEXT_PT = 9.0
_STYLE = {
    "svg.hashsalt": "sskt",  # the same page for the same run
    "font.size": _TEXT_PT,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def series_of(metrics: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """The figures of these names over the epochs, of those that have them (see `Series`)."""
    found = {}
    for name in names:
        points = [(each["epoch"], each[name]) for each in metrics if isinstance(each.get(name), int | float)]
        if points:
            found[name] = tuple(zip(*points, strict=True))
    return found


def curves(series: Series, *, ylabel: str, log: bool = False) -> str:
    """A line per series, as a data URI of an SVG picture."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    with lettering(*series), matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        rows = -(-len(series) // (2 if max(map(len, series), default=0) < 24 else 1))
        figure = Figure(figsize=(_SIZE_IN[0], _SIZE_IN[1] + 0.17 * rows), layout="constrained")
        axes = figure.add_subplot()
        room_px = 0.8 * _SIZE_IN[0] * figure.dpi
        for number, (label, (epochs, values)) in enumerate(series.items()):
            short = fitted(label, figure, width_px=room_px, size_pt=8, lines=1)
            style = ("-", "--", ":", "-.")[number // 10 % 4]
            marker = "o" if len(epochs) < 3 else ""
            axes.plot(epochs, values, style, marker=marker, markersize=3, linewidth=1.5, label=short)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.set(xlabel="epoch", ylabel=ylabel)
        axes.grid(alpha=0.3)
        columns = 2 if rows < len(series) else 1
        figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=columns)
        return svg_uri(figure)


def svg_uri(figure: Figure) -> str:
    """A figure as a data URI of an SVG picture, with its letters as outlines: no reader needs the fonts."""
    import matplotlib

    out = io.BytesIO()
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        figure.savefig(out, format="svg", metadata={"Date": None})
    return data_uri(out.getvalue(), "image/svg+xml")


def data_uri(content: bytes, kind: str) -> str:
    """A file's bytes as an address that holds them."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def image_uri(pixels: Pixels) -> str:
    """An image, uint8 (H, W, 3), as a data URI: a PNG if it is small, else a JPEG."""
    out, small = io.BytesIO(), pixels.shape[0] <= _SMALL_PX
    Image.fromarray(pixels).save(out, format="PNG" if small else "JPEG", quality=88)
    return data_uri(out.getvalue(), f"image/{'png' if small else 'jpeg'}")
