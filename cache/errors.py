"""What can go wrong with a store: one sentence with the culprit, found, expected and the remedy."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

ABSENT = object()  # stands for the value of a field that one of the two fingerprints does not have
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Difference:
    """One field whose values differ; the value of a field that one side lacks is `ABSENT`."""

    field: str  # dotted, e.g. "source.weights_sha256"
    stored: Any
    wanted: Any

    def __str__(self) -> str:
        return f"{self.field} is {_shown(self.stored)} in the store and {_shown(self.wanted)} in this run"


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


def _shown(value: Any) -> str:
    if value is ABSENT:
        return "absent"
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{32,}", value):
        return value[:12]
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"
