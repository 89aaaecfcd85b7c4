"""Read a list of images and labels: CSV or TSV with a header, JSON (a list of objects), or JSON Lines.

Columns: path; label, or labels for several per image; split, if the list names any. Others are passed over.
Labels in one cell are a JSON list, or separated by | or ;, whichever the column holds, else by commas.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.data.datasets.own.annotations import Annotations, all_unlabelled
from pipeline.data.datasets.own.list_records import Record, read_records, wrong
from sskt.errors import shown

PATH, LABEL, LABELS, SPLIT = "path", "label", "labels", "split"
SEPARATORS = "|;"  # before a comma, which may be part of a label


@dataclass(frozen=True, slots=True, eq=False)
class ListedImages:
    """The images of a list, sorted as those of a folder would be, and what the list says of each.

    paths: relative to the list's folder, or absolute.
    """

    paths: tuple[str, ...]
    said: Annotations


def read_list(file: Path) -> ListedImages:
    """Read a list. Raises TargetError, naming the line, for what cannot be read or understood."""
    records = list(read_records(file))
    if not records:
        raise wrong(file, "names no image; add lines")
    columns = dict.fromkeys(column for _, values in records for column in values)
    is_pool = all_unlabelled([str(values.get(SPLIT)) for _, values in records])
    several = _several(file, columns, is_pool=is_pool)
    column = LABELS if several else LABEL
    separator = _separator(file, records) if several else None
    seen: dict[str, str] = {}  # path -> where
    found = []
    for where, values in records:
        path = _path(file, where, values.get(PATH))
        if path in seen:
            raise wrong(file, f"{where} names {path}, as {seen[path]} does; remove one of them")
        seen[path] = where
        labels = _labels(file, where, values.get(column), several=several, separator=separator)
        found.append((path, where, labels, str(values.get(SPLIT) or "").strip()))
    found.sort(key=lambda each: each[0].encode("utf-8", "surrogateescape").split(b"/"))
    paths, places, of_each, splits = zip(*found, strict=True)
    others = [name for name in columns if name not in (PATH, column, SPLIT)]
    notes = [f"{file}: columns that are not read: {', '.join(map(str, others))}"] if others else []
    if separator:
        notes.append(f"{file}: the labels of an image are taken as separated by {separator!r}")
    said = Annotations(
        str(file),
        places,
        paths,
        splits if SPLIT in columns else None,
        of_each,
        several,
        notes=tuple(map(shown, notes)),
    )
    return ListedImages(paths, said)


def _several(file: Path, columns: Mapping[str, None], *, is_pool: bool) -> bool:
    """Whether images have several labels; a list of images without labels may lack their column. Raises
    TargetError for columns that are missing or contradict.
    """
    found = f"has the columns {', '.join(map(repr, columns))}"
    expected = f"expected {PATH}, {LABEL} (or {LABELS}) and, if it names splits, {SPLIT}"
    if PATH not in columns or not (is_pool or {LABEL, LABELS} & set(columns)):
        raise wrong(file, f"{found}, {expected}; rename its columns so")
    if LABEL in columns and LABELS in columns:
        raise wrong(
            file, f"has both {LABEL} and {LABELS}, expected {LABEL} for one label per image; drop one"
        )
    return LABELS in columns


def _path(file: Path, where: str, value: Any) -> str:
    """The path of an image in its plainest form, relative to the list's folder if it lies below that."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise wrong(file, f"{where} has the path {value!r}, expected that of an image; correct it")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", value):
        raise wrong(file, f"{where} has the URL {value}, expected a path; download the images first")
    path = PurePosixPath(value)
    if path.is_absolute():
        return str(path.relative_to(file.parent) if path.is_relative_to(file.parent) else path)
    plain: list[str] = []
    for part in path.parts:
        if part != "..":
            plain.append(part)
        elif plain:
            plain.pop()
        else:
            raise wrong(
                file,
                f"{where} has the path {value}, which leaves the list's folder; put the list above its "
                f"images, or write absolute paths",
            )
    return "/".join(plain)


def _separator(file: Path, records: list[Record]) -> str | None:
    """What separates the labels in cells that are text and no JSON lists; None where nothing does."""
    cells = (values.get(LABELS) for _, values in records)
    texts = [cell for cell in cells if isinstance(cell, str) and not cell.lstrip().startswith("[")]
    found = [separator for separator in SEPARATORS if any(separator in text for text in texts)]
    if len(found) > 1:
        held = " and ".join(map(repr, found))
        raise wrong(
            file, f'its {LABELS} hold {held}, and either may separate; write JSON lists such as ["a", "b"]'
        )
    if not found and any("," in text for text in texts):
        return ","
    return found[0] if found else None


def _labels(file: Path, where: str, value: Any, *, several: bool, separator: str | None) -> tuple[str, ...]:
    """The labels in one value, each once; none of an empty one."""
    parts: Any = [value]
    if several and isinstance(value, str) and value.lstrip().startswith("["):
        try:
            parts = json.loads(value)
        except ValueError as error:
            raise wrong(
                file, f"{where} has the labels {value}, no sound JSON ({error}); correct it"
            ) from None
    elif several and isinstance(value, list):
        parts = value
    elif separator and isinstance(value, str):
        parts = value.split(separator)
    labels = (_label(file, where, part) for part in parts)
    return tuple(dict.fromkeys(label for label in labels if label))


def _label(file: Path, where: str, value: Any) -> str:
    """One label as text, empty for none."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise wrong(file, f"{where} has the label {value!r}, expected text or a whole number; correct it")
    return str(value).strip()
