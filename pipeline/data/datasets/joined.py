"""Several datasets as one: a target's samples, and pools of samples without labels.

Each part keeps its own ids for what is looked up by them, plan decisions and stored rows; in the joined
dataset a sample has another id, so that those of two parts never meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.data.datasets.dataset import Dataset, Pixels, Positions

_PART = 1 << 40  # between the ids of two parts


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """Those of some positions that lie in one part: which they are, int64 (n,), and their rows there."""

    part: int
    which: Positions
    rows: Positions


class Parts:
    """Where the samples of a joined dataset come from, by the number of samples of each part."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._begins = np.cumsum([0, *sizes])

    def place(self, positions: Positions) -> list[Placed]:
        """Sort positions by part; parts without any are left out."""
        part_of = np.searchsorted(self._begins, positions, side="right") - 1
        which = {int(part): np.flatnonzero(part_of == part) for part in np.unique(part_of)}
        return [Placed(part, at, positions[at] - self._begins[part]) for part, at in which.items()]


@dataclass(frozen=True, slots=True, eq=False)
class JoinedImages:
    """Access to the images of several datasets; `rows`: int64 (N,), positions in all of them together."""

    parts: tuple[Dataset, ...]
    rows: Positions

    def place(self, positions: Positions) -> list[Placed]:
        """The parts that hold the images at `positions`, and their rows there."""
        return Parts([len(part) for part in self.parts]).place(self.rows[positions])

    def name_of(self, row: int) -> str:
        """See `Images.name_of`."""
        part, at = self._at(row)
        return part.name_of(at)

    def pixels_of(self, row: int) -> Pixels:
        """See `Images.pixels_of`."""
        part, at = self._at(row)
        return part.pixels_of(at)

    def encoded(self, row: int) -> bytes:
        """See `Images.encoded`."""
        part, at = self._at(row)
        return part.encoded(at)

    def stack(self, rows: Positions) -> Pixels:
        """See `Images.stack`."""
        return np.stack([self.pixels_of(int(row)) for row in rows])

    def take(self, rows: Positions) -> JoinedImages:
        """See `Images.take`."""
        return replace(self, rows=self.rows[rows])

    def _at(self, row: int) -> tuple[Dataset, int]:
        (placed,) = self.place(np.array([row]))
        return self.parts[placed.part], int(placed.rows[0])


def join(datasets: Sequence[Dataset]) -> Dataset:
    """The samples of the first dataset, as they are, and then those of the others, without their labels."""
    first, *pools = datasets
    if not pools:
        return first
    n_pooled = sum(map(len, pools))
    multi_hot = first.multi_hot
    if multi_hot is not None:
        unknown = np.full((n_pooled, multi_hot.shape[1]), -1, dtype=multi_hot.dtype)
        multi_hot = np.concatenate([multi_hot, unknown])
    return replace(
        first,
        ids=np.concatenate([part * _PART + dataset.ids for part, dataset in enumerate(datasets)]),
        labels=np.concatenate([first.labels, np.full(n_pooled, -1, dtype=np.int64)]),
        sizes=np.concatenate([dataset.sizes for dataset in datasets]),
        contents=np.concatenate([dataset.contents for dataset in datasets]),
        access=JoinedImages(tuple(datasets), np.arange(len(first) + n_pooled)),
        multi_hot=multi_hot,
    )
