"""Read a list of images and labels: CSV or TSV with a header, JSON (a list of objects), or JSON Lines.

Columns: path; label, or labels for several per image; split, if the list names any. Others are passed over.
Labels in one cell are a JSON list, or separated by | or ;, whichever the column holds, else by commas.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.data.datasets.own.annotations import Annotations
from sskt.errors import TargetError, shown

PATH, LABEL, LABELS, SPLIT = "path", "label", "labels", "split"
SEPARATORS = "|;"  # before a comma, which may be part of a label
_SUFFIXES = {".csv": ",", ".tsv": "\t", ".json": "", ".jsonl": ""}
_Record = tuple[str, Mapping[str, Any]]  # where it stands, and its values by column


@dataclass(frozen=True, slots=True, eq=False)
class ListedImages:
    """The images of a list, sorted as those of a folder would be, and what the list says of each.

    paths: relative to the list's folder, or absolute.
    """

    paths: tuple[str, ...]
    said: Annotations


def read_list(file: Path) -> ListedImages:
    """Read a list. Raises TargetError, naming the line, for what cannot be read or understood."""
    if file.suffix.lower() not in _SUFFIXES:
        raise _wrong(
            file, f"ends in {file.suffix or 'nothing'!r}, expected {', '.join(_SUFFIXES)}; rename it"
        )
    records = list(_records(file))
    if not records:
        raise _wrong(file, "names no image; add lines")
    columns = dict.fromkeys(column for _, values in records for column in values)
    several = _several(file, columns)
    column = LABELS if several else LABEL
    separator = _separator(file, records) if several else None
    seen: dict[str, str] = {}  # path -> where
    found = []
    for where, values in records:
        path = _path(file, where, values.get(PATH))
        if path in seen:
            raise _wrong(file, f"{where} names {path}, as {seen[path]} does; remove one of them")
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


def _several(file: Path, columns: Mapping[str, None]) -> bool:
    """Whether images have several labels. Raises TargetError for columns that are missing or contradict."""
    found = f"has the columns {', '.join(map(repr, columns))}"
    expected = f"expected {PATH}, {LABEL} (or {LABELS}) and, if it names splits, {SPLIT}"
    if PATH not in columns or not {LABEL, LABELS} & set(columns):
        raise _wrong(file, f"{found}, {expected}; rename its columns so")
    if LABEL in columns and LABELS in columns:
        raise _wrong(
            file, f"has both {LABEL} and {LABELS}, expected {LABEL} for one label per image; drop one"
        )
    return LABELS in columns


def _records(file: Path) -> Iterator[_Record]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise _wrong(file, f"cannot be read ({error.strerror or error}); check its path") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise _wrong(file, f"line {line:,} is not UTF-8 (byte 0x{byte:02x}); save it as UTF-8") from None
    delimiter = _SUFFIXES[file.suffix.lower()]
    if delimiter:
        return _rows(file, text, delimiter)
    return _objects(file, text, by_line=file.suffix.lower() == ".jsonl")


def _rows(file: Path, text: str, delimiter: str) -> Iterator[_Record]:
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    names: list[str] | None = None
    try:
        for row in reader:
            if not row:
                continue
            if names is None:
                names = [name.strip() for name in row]
                if len(set(names)) < len(names):
                    twice = next(name for name in names if names.count(name) > 1)
                    raise _wrong(file, f"has the column {twice!r} twice; rename one")
                continue
            if len(row) != len(names):
                raise _wrong(
                    file,
                    f"line {reader.line_num:,} has {len(row)} values, expected {len(names)} as the header; "
                    f"quote a value that holds {delimiter!r}",
                )
            yield f"line {reader.line_num:,}", dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise _wrong(file, f"line {reader.line_num:,} is no sound CSV ({error}); correct it") from None


def _objects(file: Path, text: str, *, by_line: bool) -> Iterator[_Record]:
    try:
        if by_line:
            lines = enumerate(text.split("\n"), start=1)
            found = [(f"line {number:,}", json.loads(line)) for number, line in lines if line.strip()]
        else:
            listed = json.loads(text)
            if not isinstance(listed, list):
                raise _wrong(
                    file, "holds no list, expected a list of objects such as {path, label}; change it"
                )
            found = [(f"entry {number:,}", each) for number, each in enumerate(listed, start=1)]
    except (ValueError, RecursionError) as error:
        raise _wrong(file, f"is no sound JSON ({error}); correct it") from None
    for where, values in found:
        if not isinstance(values, dict):
            raise _wrong(file, f"{where} is no object, expected one such as {{path, label}}; correct it")
        yield where, values


def _path(file: Path, where: str, value: Any) -> str:
    """The path of an image in its plainest form, relative to the list's folder if it lies below that."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise _wrong(file, f"{where} has the path {value!r}, expected that of an image; correct it")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", value):
        raise _wrong(file, f"{where} has the URL {value}, expected a path; download the images first")
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
            raise _wrong(
                file,
                f"{where} has the path {value}, which leaves the list's folder; put the list above its "
                f"images, or write absolute paths",
            )
    return "/".join(plain)


def _separator(file: Path, records: list[_Record]) -> str | None:
    """What separates the labels in cells that are text and no JSON lists; None where nothing does."""
    cells = (values.get(LABELS) for _, values in records)
    texts = [cell for cell in cells if isinstance(cell, str) and not cell.lstrip().startswith("[")]
    found = [separator for separator in SEPARATORS if any(separator in text for text in texts)]
    if len(found) > 1:
        held = " and ".join(map(repr, found))
        raise _wrong(
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
            raise _wrong(
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
        raise _wrong(file, f"{where} has the label {value!r}, expected text or a whole number; correct it")
    return str(value).strip()


def _wrong(file: Path, what: str) -> TargetError:
    return TargetError(f"{shown(str(file))}: {shown(what)}")
