"""Errors of stores: one sentence with the culprit, what was found, what was expected, and the remedy."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

ABSENT = object()  # the value of a field that one of two fingerprints lacks
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Difference:
    """One field whose values differ; a side that lacks the field has `ABSENT`."""

    field: str  # dotted, e.g. "source.weights_sha256"
    stored: Any
    wanted: Any

    def __str__(self) -> str:
        return f"{self.field} is {_shown(self.stored)} in the store and {_shown(self.wanted)} in this run"


class CacheError(Exception):
    """Base class of all errors that this package raises on purpose; the command line prints its text."""


class StoreMismatch(CacheError):  # noqa: N818 - the names describe the store or folder
    """A store was made with other settings than requested; `differences` holds the fields that differ."""

    def __init__(self, message: str, differences: tuple[Difference, ...] = ()) -> None:
        super().__init__(message)
        self.differences = differences


class StoreIncomplete(CacheError):  # noqa: N818
    """Requested units are not finished yet; precomputing again adds them."""


class FolderClosed(CacheError):  # noqa: N818
    """A folder that this user may not list; a search of many folders skips it."""


class StoreDamaged(CacheError):  # noqa: N818
    """The bytes on disk are not those that were written."""


def _shown(value: Any) -> str:
    if value is ABSENT:
        return "absent"
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{32,}", value):
        return value[:12]
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"
