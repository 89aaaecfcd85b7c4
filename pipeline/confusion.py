"""A confusion matrix as files: numbers for a program, a picture for a reader."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sskt.errors import RunError
from sskt.names import shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMED = 40  # classes at most whose names are legible


def write_confusion(matrix: NDArray[np.int64], classes: tuple[str, ...], folder: Path) -> dict[str, str]:
    """Write confusion.csv, counts with true classes as rows, and confusion.png, shares of each true class.

    `matrix`: int64 (C, C). Returns the paths by kind. Raises RunError if they cannot be written.
    """
    classes = tuple(map(shown, classes))
    paths = {"confusion_csv": folder / "confusion.csv", "confusion_png": folder / "confusion.png"}
    try:
        with paths["confusion_csv"].open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["true \\ said", *classes])
            writer.writerows([name, *row.tolist()] for name, row in zip(classes, matrix, strict=True))
        _draw(matrix, classes).savefig(paths["confusion_png"], dpi=120)
    except OSError as error:
        raise RunError(
            f"{folder}: cannot be written ({error.strerror or error}); make room, or allow writing there"
        ) from error
    return {kind: str(path) for kind, path in paths.items()}


def _draw(matrix: NDArray[np.int64], classes: tuple[str, ...]) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    there = matrix.sum(axis=1) > 0  # a class without samples would be an empty row
    shares = matrix[there] / matrix[there].sum(axis=1, keepdims=True)
    said = there | (matrix.sum(axis=0) > 0)
    shares = shares[:, said]
    rows, columns = (
        [name for name, is_in in zip(classes, which, strict=True) if is_in] for which in (there, said)
    )
    legible = len(columns) <= _NAMED
    side = max(4.0, 0.28 * len(columns) + 2.5) if legible else 9.0
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    if legible:
        axes.set_xticks(range(len(columns)), columns, rotation=90)
        axes.set_yticks(range(len(rows)), rows)
    axes.set_xlabel("said")
    axes.set_ylabel("true")
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    return figure
