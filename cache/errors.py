"""What can go wrong with a store: one sentence with the culprit, what was found, what was expected, the remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cache.manifest import Difference


class CacheError(Exception):
    """Base of every error that this room raises on purpose; the command line prints its text."""


class StoreMismatch(CacheError):
    """A store answers another question than the one asked; `differences` holds the fields, if it is about fields."""

    def __init__(self, message: str, differences: tuple[Difference, ...] = ()) -> None:
        super().__init__(message)
        self.differences = differences


class StoreIncomplete(CacheError):
    """Units that were asked for are not there yet; precomputing again adds them."""


class StoreDamaged(CacheError):
    """What lies on disk is not what was written."""
