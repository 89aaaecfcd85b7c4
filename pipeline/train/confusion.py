"""Write a confusion matrix as CSV, for programs, and as a picture, for readers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cache import Location
from pipeline.runtime import csv_text, fitted, write_figure, write_result
from sskt.errors import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_REMEDY = "make room, or allow writing there"
_NAMED = 40  # with more classes, names are not legible
_NAME_IN, _NAME_PT = 1.8, 9.0  # room for a class's name
_LARGEST_PT, _SMALLEST_PT = 9.0, 5.0  # of a number in a cell
_DIGIT = 0.64  # width of a digit, of its size


def write_confusion(
    matrix: NDArray[np.int64], classes: tuple[str, ...], folder: Location, name: str = "confusion"
) -> dict[str, str]:
    """Write confusion.csv, counts with true classes as rows, and confusion.png, whose colours are fractions
    of each true class, with counts in cells that are large enough; `name` is that of both files.

    `matrix`: int64 (C, C). Returns the paths by kind. Raises RunError if they cannot be written.
    """
    classes = tuple(map(shown, classes))
    paths = {f"confusion_{kind}": folder / f"{name}.{kind}" for kind in ("csv", "png")}
    rows = ([name, *row.tolist()] for name, row in zip(classes, matrix, strict=True))
    write_result(paths["confusion_csv"], csv_text([["true \\ said", *classes], *rows]).encode(), _REMEDY)
    image = paths["confusion_png"]
    write_figure(image, lambda: draw_confusion(matrix, classes), *classes, dpi=120, remedy=_REMEDY)
    return {kind: str(path) for kind, path in paths.items()}


def draw_confusion(matrix: NDArray[np.int64], classes: tuple[str, ...]) -> Figure:
    """The picture of a confusion matrix, int64 (C, C); see `write_confusion`."""
    from matplotlib.figure import Figure

    has_samples = matrix.sum(axis=1) > 0  # a class without would be an empty row
    is_column = has_samples | (matrix.sum(axis=0) > 0)
    counts = matrix[has_samples][:, is_column]
    shares = counts / matrix[has_samples].sum(axis=1, keepdims=True)
    legible = counts.shape[1] <= _NAMED
    side = max(4.0, 0.28 * counts.shape[1] + 2.5) if legible else 9.0
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    if legible:
        rows, columns = (_names(classes, which, figure) for which in (has_samples, is_column))
        axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=_NAME_PT)
        axes.set_yticks(range(len(rows)), rows, fontsize=_NAME_PT)
    axes.set_xlabel("said")
    axes.set_ylabel("true")
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    _number(axes, counts, shares, figure)
    return figure


def _names(classes: Sequence[str], which: NDArray[np.bool_], figure: Figure) -> list[str]:
    """The names of some classes, shortened to the room there is."""
    room = {"width_px": _NAME_IN * figure.dpi, "size_pt": _NAME_PT}
    return [
        fitted(name, figure, lines=1, **room) for name, is_in in zip(classes, which, strict=True) if is_in
    ]


def _number(axes: Axes, counts: NDArray[np.int64], shares: NDArray[np.floating], figure: Figure) -> None:
    """Write each count into its cell, if the longest is legible."""
    figure.draw_without_rendering()  # places the axes
    points = 72 / figure.dpi
    window = axes.get_window_extent()
    width, height = window.width * points / counts.shape[1], window.height * points / counts.shape[0]
    size = min(_LARGEST_PT, 0.6 * height, 0.85 * width / (_DIGIT * len(str(counts.max()))))
    if size < _SMALLEST_PT:
        return
    for (y, x), count in np.ndenumerate(counts):
        colour = "white" if shares[y, x] > 0.5 else "black" if count else "#aaaaaa"
        axes.text(x, y, str(count), ha="center", va="center", fontsize=size, color=colour)
