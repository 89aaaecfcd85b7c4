"""Targets by name: downloaded, checked, packed and opened."""

from __future__ import annotations

import logging
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

log = logging.getLogger(__name__)


def run_prepare(
    target: str, *, places: Places, packing: Packing | None = None, allow_missing: bool = False
) -> list[dict[str, Any]]:
    """Download a target if it can be, check every file, keep its index; one row of plain data per split.

    Of a target of videos every frame is packed, by `packing`. With `allow_missing` it goes on, from now on,
    without files that are listed and not there, or damaged.
    """
    spec, rows = parse_target(coerce.text(target, "target")), []
    indexes: dict[str, TargetIndex] = {}
    if spec.videos is not None:
        prepare_videos(
            spec, places.data_dir, places.index_dir, packing=packing or Packing(), allow_missing=allow_missing
        )
    said = set[str]()
    for split in ("train", "val", "test") if has_val(spec, places.data_dir) else SPLITS:
        try:
            index = open_index(target, split, places=places, said=said)
        except UnusableFiles as unusable:
            if not allow_missing:
                raise
            unusable.leave_out()
            index = open_index(target, split, places=places, said=said)
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
        log.info(sentence)
    return rows


def open_index(
    target: str, split: str, *, places: Places, limit: int | None = None, said: set[str] | None = None
) -> TargetIndex:
    """The validated index of one split of a named target; what there is to remark on it is logged.

    `said` holds the remarks on other splits, which are not made again.
    """
    index = load_index(
        parse_target(target), split, data_dir=places.data_dir, index_dir=places.index_dir, limit=limit
    )
    said = set() if said is None else said
    for note in (*index.notes, *empty_classes(index)):
        if note not in said:
            said.add(note)
            log.info(note)
    return index
