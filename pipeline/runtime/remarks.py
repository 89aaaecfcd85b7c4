"""Remarks: what a user should know about a run, sent through Python's logging.

Anything assumed, left out or replaced is a WARNING, which Python prints even without a handler; anything
merely of interest is INFO. The command line shows both.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def mute_remarks() -> Iterator[None]:
    """Drop all remarks below ERROR, for callers that only look at what would be done."""
    root = logging.getLogger("pipeline")
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
