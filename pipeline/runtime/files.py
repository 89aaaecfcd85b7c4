"""Files for the user: tables as text for other programs, and what is said where one cannot be written."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

from cache import Location, write_durably
from sskt.errors import RunError


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows of cells as CSV, each line ended by a line feed."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def write_file(path: Location, data: bytes, remedy: str = "choose another --out") -> None:
    """Write a file whole, in a folder that need not exist. Raises RunError, whose sentence ends with
    `remedy`, if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, data)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error}); {remedy}") from error
