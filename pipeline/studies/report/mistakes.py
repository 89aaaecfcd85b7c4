"""Which answers are wrong, and how sure of them a student is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def mistakes(
    scores: NDArray[np.floating], shares: NDArray[np.floating], labels: NDArray[np.int64]
) -> list[tuple[int, int, float]]:
    """(row, class said, its probability) of every row whose best class is not its label, surest first.

    scores and shares are (N, C), labels (N,).
    """
    said = scores.argmax(axis=1)
    rows = np.flatnonzero(said != labels)
    sure = shares[rows, said[rows]]
    order = np.argsort(-sure, kind="stable")
    return [(int(rows[at]), int(said[rows[at]]), float(sure[at])) for at in order]


def multilabel_mistakes(
    shares: NDArray[np.floating], multi_hot: NDArray[np.int8]
) -> list[tuple[int, int, float]]:
    """(row, class, its probability) of the worst answer about each image that has one beyond 0.5 on the wrong
    side; entries of -1 do not count.
    """
    off = np.where(multi_hot < 0, 0.0, np.abs(shares - multi_hot))
    worst = off.argmax(axis=1)
    size = off[np.arange(len(off)), worst]
    order = [int(row) for row in np.argsort(-size, kind="stable") if size[row] > 0.5]
    return [(row, int(worst[row]), float(shares[row, worst[row]])) for row in order]
