"""The fingerprint of a store: everything its logits are a function of; and how two fingerprints differ.

A fingerprint is a nested dict of JSON values. Field names hold no dot, so every leaf has one dotted name
("source.weights_sha256"). Two are equal if their canonical JSON is: 1, 1.0 and true all differ.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from cache.errors import ABSENT, Difference, StoreDamaged, StoreMismatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cache.storage import Location

FORMAT_VERSION = 1
_FIELDS = ("format_version", "identity", "made_by")
_SHOWN_FIELDS = 4


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a store holds (`identity`, compared before every use) and how it was made (`made_by`).

    The number of views is not part of it, since a store can grow. Raises ValueError for a field name with a
    dot, and TypeError or ValueError for values that JSON cannot hold.
    """

    identity: dict[str, Any]  # source, input map, plan, target: whatever the logits are a function of
    made_by: dict[str, Any]  # compute precision, renderer, device, versions, time
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for name in ("identity", "made_by"):
            object.__setattr__(self, name, _plain(getattr(self, name), name))

    @property
    def digest(self) -> str:
        """The first 12 hex digits of the identity's sha256: the store's folder name without `.zarr`."""
        return digest(self.identity)[:12]

    def to_dict(self) -> dict[str, Any]:
        """The manifest as JSON values, with its own checksum under `sha256`."""
        fields = {name: getattr(self, name) for name in _FIELDS}
        return {**fields, "sha256": digest(fields)}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any], store_path: Location) -> Self:
        """The manifest whose `to_dict` gave `stored`; StoreDamaged if it was edited, is none, or has another
        format version.
        """
        missing = [name for name in (*_FIELDS, "sha256") if name not in stored]
        if missing:
            raise StoreDamaged(f"{store_path}: its manifest lacks {', '.join(missing)}; precompute it again")
        if stored["format_version"] != FORMAT_VERSION:
            raise StoreDamaged(
                f"{store_path}: has format version {stored['format_version']}, expected {FORMAT_VERSION}; "
                f"use the version of the program that made it, or precompute again"
            )
        fields = {name: stored[name] for name in _FIELDS}
        found = digest(fields)
        if found != stored["sha256"]:
            raise StoreDamaged(
                f"{store_path}: its manifest was edited or damaged, its fields have the sha256 {found[:12]}, "
                f"expected {str(stored['sha256'])[:12]}; "
                f"`sskt cache verify {store_path} --repair` restores it"
            )
        return cls(**fields)


def flatten(fingerprint: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a fingerprint as (dotted field, value); lists and empty dicts are leaves."""
    for name, value in fingerprint.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[Difference]:
    """Every field whose value differs, in the order of `wanted`, then fields that only `stored` has."""
    have, want = dict(flatten(stored)), dict(flatten(wanted))
    pairs = ((field, have.get(field, ABSENT), want.get(field, ABSENT)) for field in {**want, **have})
    return [Difference(*pair) for pair in pairs if not _same(*pair[1:])]


def digest(identity: Mapping[str, Any]) -> str:
    """The sha256, in hex, of a fingerprint's canonical JSON (sorted keys, no spaces, ASCII)."""
    return hashlib.sha256(_canonical(identity).encode()).hexdigest()


def require_match(store_path: Location, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise StoreMismatch, naming each field and both values, unless the two fingerprints are equal."""
    found = differences(stored, wanted)
    if not found:
        return
    shown = "; ".join(map(str, found[:_SHOWN_FIELDS]))
    more = f"; and {len(found) - _SHOWN_FIELDS} more fields differ" if len(found) > _SHOWN_FIELDS else ""
    sections = " and ".join(dict.fromkeys(difference.field.partition(".")[0] for difference in found))
    raise StoreMismatch(
        f"{store_path}: {shown}{more}; "
        f"precompute again, or pass the {sections} that made the store, or --labels live",
        tuple(found),
    )


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _same(stored: Any, wanted: Any) -> bool:
    if stored is ABSENT or wanted is ABSENT:
        return stored is wanted
    return _canonical(stored) == _canonical(wanted)


def _plain(fingerprint: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A deep copy in JSON's own types."""
    for name, value in fingerprint.items():
        if not isinstance(name, str) or "." in name:
            raise ValueError(
                f"{where}: the field name {name!r} must be a text without dots, which separate levels"
            )
        if isinstance(value, dict):
            _plain(value, f"{where}.{name}")
    plain: dict[str, Any] = json.loads(_canonical(fingerprint))
    return plain
