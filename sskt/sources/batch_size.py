"""How many rows a forward should have: measured, where memory and speed differ from device to device."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import torch

from sskt.errors import SourceError
from sskt.sources.frozen import FrozenSource

_FORWARDS = 4
_GAIN = 1.05  # a doubling that is not this much faster is not worth its memory


def fastest_rows(open_with: Callable[[int], FrozenSource], *, first: int, most: int) -> int:
    """Rows of a forward, doubled from `first` to at most `most` while that makes pictures faster and fits.

    `open_with(rows)` gives the source, which is timed on black pictures, after one forward to warm up. What
    it raises for `first` rows is passed on; with more rows it means that those are too many.
    """
    best, best_rate = first, 0.0
    rows = first
    while rows <= most:
        try:
            rate = _rate(open_with(rows), rows)
        except (torch.OutOfMemoryError, SourceError):
            if rows == first:
                raise
            break
        if rate < best_rate * _GAIN:
            break
        best, best_rate = rows, rate
        rows *= 2
    # what the trials took is nobody's: DALI cannot use what torch keeps. An error holds its forward's memory
    # until its handler is left
    torch.cuda.empty_cache()
    return best


def _rate(frozen: FrozenSource, rows: int) -> float:
    """Pictures per second."""
    black = frozen.black(rows)
    frozen.logits(black)
    started = perf_counter()
    for _ in range(_FORWARDS):
        frozen.logits(black)  # checks its rows, so that the device is done when it returns
    return _FORWARDS * rows / (perf_counter() - started)
