"""Remarks: what a user should know of a run goes through Python's logging.

What was assumed, left out or replaced is a WARNING, which Python prints if nobody listens; what is merely of
interest is INFO. The command line shows both.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unsaid() -> Iterator[None]:
    """Drop all remarks below ERROR while the caller only looks at what would be done."""
    root = logging.getLogger("pipeline")
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
