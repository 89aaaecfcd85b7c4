"""The records of a CSV, TSV, JSON or JSON Lines file, each with the place where it stands."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sskt.errors import TargetError, shown

_SUFFIXES = {".csv": ",", ".tsv": "\t", ".json": "", ".jsonl": ""}
Record = tuple[str, Mapping[str, Any]]  # where it stands, and its values by column


def read_records(file: Path) -> Iterator[Record]:
    """The records of a list. Raises TargetError, naming the line, for what cannot be read."""
    if file.suffix.lower() not in _SUFFIXES:
        raise wrong(
            file,
            f"ends in {file.suffix or 'nothing'!r}, expected {', '.join(_SUFFIXES)}; give a list of images, "
            f"or rename the file if it is one",
        )
    try:
        content = file.read_bytes()
    except OSError as error:
        raise wrong(file, f"cannot be read ({error.strerror or error}); check its path") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise wrong(file, f"line {line:,} is not UTF-8 (byte 0x{byte:02x}); save it as UTF-8") from None
    delimiter = _SUFFIXES[file.suffix.lower()]
    if delimiter:
        return _rows(file, text, delimiter)
    return _objects(file, text, by_line=file.suffix.lower() == ".jsonl")


def _rows(file: Path, text: str, delimiter: str) -> Iterator[Record]:
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
                    raise wrong(file, f"has the column {twice!r} twice; rename one")
                continue
            if len(row) != len(names):
                raise wrong(
                    file,
                    f"line {reader.line_num:,} has {len(row)} values, expected {len(names)} as the header; "
                    f"quote a value that holds {delimiter!r}",
                )
            yield f"line {reader.line_num:,}", dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise wrong(file, f"line {reader.line_num:,} is no sound CSV ({error}); correct it") from None


def _objects(file: Path, text: str, *, by_line: bool) -> Iterator[Record]:
    try:
        if by_line:
            lines = enumerate(text.split("\n"), start=1)
            found = [(f"line {number:,}", json.loads(line)) for number, line in lines if line.strip()]
        else:
            listed = json.loads(text)
            if not isinstance(listed, list):
                raise wrong(
                    file, "holds no list, expected a list of objects such as {path, label}; change it"
                )
            found = [(f"entry {number:,}", each) for number, each in enumerate(listed, start=1)]
    except (ValueError, RecursionError) as error:
        raise wrong(file, f"is no sound JSON ({error}); correct it") from None
    for where, values in found:
        if not isinstance(values, dict):
            raise wrong(file, f"{where} is no object, expected one such as {{path, label}}; correct it")
        yield where, values


def wrong(file: Path, what: str) -> TargetError:
    """The error to raise for a list."""
    return TargetError(f"{shown(str(file))}: {shown(what)}")
