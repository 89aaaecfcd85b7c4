"""Measure how many images a forward should have, since memory and speed differ between devices."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import torch

from sskt.errors import SourceError
from sskt.sources.frozen import FrozenSource

_FORWARDS = 4
_GAIN = 1.05  # a doubling that gains less speed is not worth its memory


def fastest_batch_size(open_with: Callable[[int], FrozenSource], *, first: int, most: int) -> int:
    """Find the fastest number of images per forward: double it from `first` up to `most` while that is faster
    per image and fits in memory.

    `open_with(batch_size)` opens the source, which is timed on dummy input after one warm-up forward. An
    error for `first` is raised; for a larger batch size it means that the size is too large.
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
    # free what the trials used, since DALI cannot use memory that torch caches. This must come after the
    # `except` block, because an error holds its forward's memory until its handler ends
    torch.cuda.empty_cache()
    return best


def _rate(frozen: FrozenSource, batch_size: int) -> float:
    """Images per second."""
    pixels = frozen.dummy_input(batch_size)
    frozen.logits(pixels)
    started = perf_counter()
    for _ in range(_FORWARDS):
        frozen.logits(pixels)  # checks its rows, so the device has finished when it returns
    return _FORWARDS * batch_size / (perf_counter() - started)
