"""The columns of a table that hold images and labels, by the types that `datasets` records, or by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sskt.errors import TargetError, shown

_IMAGES = ("image", "img", "images", "jpg")
_LABELS = ("label", "labels", "fine_label")
_HF = b"huggingface"  # key of a schema's metadata
_NO_CLASS = -1  # of a ClassLabel


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of two columns, whether images have several labels, and the declared classes, if any."""

    image: str
    label: str
    several: bool
    classes: tuple[str, ...] | None

    def labels_of(self, value: Any, file: Path, row: int) -> tuple[str, ...]:
        """A row's labels by name; none for null, and for -1 of declared classes. Raises TargetError for what
        is neither text nor a whole number, or beyond the declared classes.
        """
        values = value if self.several else [value]
        return tuple(
            dict.fromkeys(self._label(each, file, row) for each in values or () if not self._is_none(each))
        )

    def _is_none(self, value: Any) -> bool:
        return value is None or value == "" or (self.classes is not None and value == _NO_CLASS)

    def _label(self, value: Any, file: Path, row: int) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise _wrong(file, f"row {row:,} has the label {value!r}, expected text or a whole number")
        if self.classes is None or isinstance(value, str):
            return str(value).strip()
        if not 0 <= value < len(self.classes):
            raise _wrong(
                file, f"row {row:,} has the label {value}, expected one of {len(self.classes):,} classes"
            )
        return self.classes[value]


def columns_of(
    file: Path, names: Sequence[str], lists: Sequence[str], metadata: Mapping[bytes, bytes]
) -> Columns:
    """The columns to read of a table with columns `names`, of which `lists` hold lists.

    Raises TargetError, naming what there is, for a table without images or labels, or with several of them.
    """
    features = _features(file, metadata)
    typed = [name for name in names if _type(features.get(name)) == "Image"]
    images = _pick(typed, names, _IMAGES)
    if len(images) != 1:
        raise _wrong(file, f"has {_found(names, images)}, expected one column of images; name it image")
    declared = [name for name in names if _declared(features.get(name)) is not None]
    labels = _pick(declared, names, _LABELS)
    if len(labels) != 1:
        raise _wrong(file, f"has {_found(names, labels)}, expected one column of labels; name it label")
    label = labels[0]
    return Columns(images[0], label, label in lists, _declared(features.get(label)))


def _features(file: Path, metadata: Mapping[bytes, bytes]) -> Mapping[str, Any]:
    try:
        features = json.loads(metadata.get(_HF, b"{}")).get("info", {}).get("features", {})
    except (ValueError, AttributeError) as error:
        raise _wrong(file, f"has features that cannot be read ({error}); write it again") from None
    return features if isinstance(features, dict) else {}


def _type(feature: Any) -> str | None:
    return feature.get("_type") if isinstance(feature, dict) else None


def _declared(feature: Any) -> tuple[str, ...] | None:
    """The class names of a ClassLabel, or a list of them."""
    if isinstance(feature, list) and feature:
        return _declared(feature[0])
    if _type(feature) == "ClassLabel":
        return tuple(map(str, feature["names"])) if feature.get("names") else None
    return _declared(feature.get("feature")) if isinstance(feature, dict) else None


def _pick(typed: Sequence[str], names: Sequence[str], usual: Sequence[str]) -> list[str]:
    """The column with the most usual name among the typed ones, else all of those; if there is none, the one
    with the most usual name at all.
    """
    for among in (typed, names):
        if found := [name for name in usual if name in among]:
            return found[:1]
        if among is typed and typed:
            return list(typed)
    return []


def _found(names: Sequence[str], candidates: Sequence[str]) -> str:
    return f"the columns {', '.join(candidates if len(candidates) > 1 else names)}"


def _wrong(file: Path, what: str) -> TargetError:
    return TargetError(f"{shown(str(file))}: {shown(what)}")
