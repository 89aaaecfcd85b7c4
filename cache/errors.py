"""What can go wrong with a store: one sentence with the culprit, found, expected and the remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cache.manifest import Difference


class CacheError(Exception):
    """Base of every error that this room raises on purpose; the command line prints its text."""


class StoreMismatch(CacheError):  # noqa: N818 - they say what the store or folder is
    """A store answers another question than the one asked; `differences` holds the fields that differ."""

    def __init__(self, message: str, differences: tuple[Difference, ...] = ()) -> None:
        super().__init__(message)
        self.differences = differences


class StoreIncomplete(CacheError):  # noqa: N818
    """Units that were asked for are not there yet; precomputing again adds them."""


class FolderClosed(CacheError):  # noqa: N818
    """A folder that this user may not look into; a search of many folders passes it over."""


class StoreDamaged(CacheError):  # noqa: N818
    """What lies on disk is not what was written."""
