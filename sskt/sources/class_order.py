"""Match a teacher's classes with a target's, by their names or by a named order.

A match is one column number per class of the target: column c of a teacher's reordered logits is
`logits[:, columns[c]]`.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from sskt.errors import SourceError

_NUMBERS = re.compile(r"(\d+)")


def columns_of(declared: tuple[str, ...] | str, classes: tuple[str, ...]) -> NDArray[np.int64] | None:
    """The column of each target class in a teacher whose classes are `declared`: names in the order of its
    outputs, or one of `sskt.sources.contract.ORDERS`. None if the names are not the target's.

    Names are compared exactly, and if that fails ignoring case and treating spaces, hyphens and underscores
    alike.
    """
    if isinstance(declared, str):
        return _columns(in_order(declared, classes), classes)
    if len(declared) != len(classes):
        return None
    for normal_form in (str, _plain):
        names, wanted = [normal_form(name) for name in declared], [normal_form(name) for name in classes]
        if len(set(names)) == len(names) and sorted(names) == sorted(wanted):
            return _columns(tuple(names), tuple(wanted))
    return None


def in_order(order: str, classes: tuple[str, ...]) -> tuple[str, ...]:
    """The target's class names sorted in a named order. Raises SourceError for an unknown order."""
    if order == "target":
        return classes
    if order == "reversed":
        return classes[::-1]
    if order == "text":
        return tuple(sorted(classes))
    if order == "case-insensitive":
        return tuple(sorted(classes, key=lambda name: (name.lower(), name)))
    if order == "numeric":
        return tuple(sorted(classes, key=_by_number))
    raise SourceError(f"{order!r} is no order of classes")


def known_orders(classes: tuple[str, ...]) -> dict[str, NDArray[np.int64]]:
    """The distinct named orders that differ from the target's: order to columns."""
    columns: dict[str, NDArray[np.int64]] = {}
    for order in ("numeric", "text", "case-insensitive", "reversed"):
        names = in_order(order, classes)
        if names != classes and not any(in_order(other, classes) == names for other in columns):
            columns[order] = _columns(names, classes)
    return columns


def _columns(names: tuple[str, ...], classes: tuple[str, ...]) -> NDArray[np.int64]:
    column_of = {name: column for column, name in enumerate(names)}
    return np.array([column_of[name] for name in classes], dtype=np.int64)


def _by_number(name: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key that reads digits as numbers: "class 2" before "class 10"."""
    parts = _NUMBERS.split(name)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().lower()
