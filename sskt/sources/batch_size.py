"""How many images a forward should have: measured, where memory and speed differ from device to device."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import torch

from sskt.errors import SourceError
from sskt.sources.frozen import FrozenSource

_FORWARDS = 4
_GAIN = 1.05  # a doubling that is not this much faster is not worth its memory


def fastest_batch_size(open_with: Callable[[int], FrozenSource], *, first: int, most: int) -> int:
    """Images in a forward, doubled from `first` to at most `most` while that is faster per image and fits.

    `open_with(batch_size)` gives the source, which is timed on dummy input, after one forward to warm up.
    What it raises for `first` is passed on; for a larger batch size it means that it is too large.
    """
    best, best_rate = first, 0.0
    batch_size = first
    while batch_size <= most:
        try:
            rate = _rate(open_with(batch_size), batch_size)
        except (torch.OutOfMemoryError, SourceError):
            if batch_size == first:
                raise
            break
        if rate < best_rate * _GAIN:
            break
        best, best_rate = batch_size, rate
        batch_size *= 2
    # give back what the trials took: DALI cannot use what torch keeps. An error holds its forward's memory
    # until its handler is left
    torch.cuda.empty_cache()
    return best


def _rate(frozen: FrozenSource, batch_size: int) -> float:
    """Images per second."""
    pixels = frozen.dummy_input(batch_size)
    frozen.logits(pixels)
    started = perf_counter()
    for _ in range(_FORWARDS):
        frozen.logits(pixels)  # checks its rows, so that the device is done when it returns
    return _FORWARDS * batch_size / (perf_counter() - started)
