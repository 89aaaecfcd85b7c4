"""What a tar shard holds, as far as it is read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

SAMPLE_ID = "sskt_id"  # in a sample's .json


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
