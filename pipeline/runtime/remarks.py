"""Remarks: what a user should know about a run, sent through Python's logging."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

ROOTS = ("pipeline", "sskt", "cache")  # the loggers that carry them, at INFO or above


@contextmanager
def mute_remarks() -> Iterator[None]:
    """Drop all remarks below ERROR, for callers that only look at what would be done."""
    root = logging.getLogger(ROOTS[0])
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
