"""Targets by name: downloaded, checked, packed and opened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.data.datasets import has_val, load_index, parse_target
from pipeline.data.datasets.dataset import TargetIndex
from pipeline.data.datasets.left_out import UnusableFiles
from pipeline.data.datasets.registry import SPLITS
from pipeline.data.datasets.remarks import empty_classes, same_bytes
from pipeline.data.datasets.video.pack import Packing
from pipeline.data.datasets.video.prepare import prepare_videos
from pipeline.runtime import coerce
from pipeline.runtime.paths import Places

Say = Callable[[str], None]


def run_prepare(
    target: str,
    *,
    places: Places,
    say: Say,
    packing: Packing | None = None,
    allow_missing: bool = False,
) -> list[dict[str, Any]]:
    """Download a target if it can be, check every file, keep its index; one row of plain data per split.

    Of a target of videos every frame is packed, by `packing`. With `allow_missing` it goes on, from now on,
    without files that are listed and not there, or damaged.
    """
    spec, rows = parse_target(coerce.text(target, "target")), []
    indexes: dict[str, TargetIndex] = {}
    if spec.videos is not None:
        prepare_videos(
            spec,
            places.data_dir,
            places.index_dir,
            packing=packing or Packing(),
            allow_missing=allow_missing,
            say=say,
        )
    say = once(say)
    for split in ("train", "val", "test") if has_val(spec, places.data_dir) else SPLITS:
        try:
            index = open_index(target, split, places=places, say=say)
        except UnusableFiles as unusable:
            if not allow_missing:
                raise
            unusable.leave_out()
            index = open_index(target, split, places=places, say=say)
        indexes[split] = index
        rows.append(
            {
                "target": index.target,
                "split": split,
                "samples": len(index),
                "classes": len(index.classes),
                "contents": index.content_sha256,
            }
        )
    for sentence in same_bytes(spec, indexes, places.index_dir):
        say(sentence)
    return rows


def once(say: Say) -> Say:
    """`say`, but for sentences that it has said already."""
    said = set[str]()

    def say_once(sentence: str) -> None:
        if sentence not in said:
            said.add(sentence)
            say(sentence)

    return say_once


def open_index(target: str, split: str, *, places: Places, say: Say, limit: int | None = None) -> TargetIndex:
    """The validated index of one split of a named target; what it has to remark is said."""
    index = load_index(
        parse_target(target), split, data_dir=places.data_dir, index_dir=places.index_dir, limit=limit
    )
    for note in (*index.notes, *empty_classes(index)):
        say(note)
    return index
