"""What a tar shard holds, as far as it is read."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field

from cache import Location, is_file
from cache.storage import read_file
from sskt.errors import TargetError, shown

SAMPLE_ID = "sskt_id"  # in a sample's .json
_DECLARATION = "sskt-pack.json"  # beside the shards of a target that was packed


@dataclass(slots=True)
class Sample:
    """One image in a shard: its member's name, first byte and length; the labels said of it, and whether they
    are those of an image that may have several.
    """

    name: str
    begin: int
    length: int
    labels: tuple[str, ...] = ()
    several: bool | None = None  # None: nothing is said
    id: int | None = None  # of a target that was packed (`pipeline.data.pack`)


@dataclass(slots=True)
class Shard:
    """The images of a shard; `ignored` counts the members that are not read, by their suffix."""

    samples: list[Sample] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Declaration:
    """What all shards of a packed target have in common: class names in label order, and whether an image
    may have several.
    """

    classes: tuple[str, ...]
    several: bool

    def parts(self) -> tuple[str, bytes]:
        """The name and the bytes of its file."""
        content = {"classes": self.classes, "several_labels": self.several}
        return _DECLARATION, (json.dumps(content, indent=1) + "\n").encode()


def read_declaration(root: Location) -> Declaration | None:
    """What the folder at `root` declares; None if nothing does. Raises TargetError if it cannot be read."""
    file = root / _DECLARATION
    if not is_file(file):
        return None
    try:
        content = json.loads(read_file(file))
        return Declaration(tuple(content["classes"]), bool(content["several_labels"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TargetError(f"{shown(str(file))}: cannot be read ({error}); pack the target again") from None
