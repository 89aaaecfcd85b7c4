"""Download, check, pack and open targets by name."""

from __future__ import annotations

import logging
from typing import Any

from pipeline.data.datasets import (
    SPLITS,
    UNLABELLED,
    Dataset,
    Packing,
    UnusableFiles,
    empty_classes,
    family_of,
    has_unlabelled,
    has_val,
    parse_target,
    same_bytes,
)
from pipeline.data.index_copies import load_shared
from pipeline.data.pack import require_same, write_packs
from pipeline.runtime import Paths, coerce

log = logging.getLogger(__name__)


def prepare(
    target: str,
    *,
    paths: Paths,
    packing: Packing | None = None,
    allow_missing: bool = False,
    pack: str | None = None,
) -> list[dict[str, Any]]:
    """Download a target if possible, check every file and save its index; returns a dict per split.

    For a video target every frame is packed as `packing` says. With `allow_missing`, files that are missing
    or damaged are left out, now and in later runs. `pack` is a folder or URL that the images are packed into
    (`pipeline.data.pack`), to be named as tar:URL; what lies there is compared with the loose files.
    """
    spec, rows = parse_target(coerce.text(target, "target")), []
    datasets: dict[str, Dataset] = {}
    family_of(spec).prepare(
        spec, paths.data_dir, paths.index_dir, packing=packing or Packing(), allow_missing=allow_missing
    )
    said = set[str]()
    splits: tuple[str, ...] = ("train", "val", "test") if has_val(spec, paths.data_dir) else SPLITS
    if not family_of(spec).has_labels:
        splits = ()
    if not splits or (
        has_unlabelled(spec, paths.data_dir)
        and family_of(spec).is_prepared(spec, UNLABELLED, paths.data_dir, paths.index_dir)
    ):
        splits = (*splits, UNLABELLED)
    for split in splits:
        try:
            dataset = open_dataset(target, split, paths=paths, said=said)
        except UnusableFiles as unusable:
            if not allow_missing:
                raise
            unusable.leave_out()
            dataset = open_dataset(target, split, paths=paths, said=said)
        datasets[split] = dataset
        rows.append(
            {
                "target": dataset.target,
                "split": split,
                "samples": len(dataset),
                "classes": len(dataset.classes),
                "contents": dataset.content_sha256,
            }
        )
    if pack is not None:
        folder = coerce.place(pack, "pack")
        write_packs(datasets, folder)
        for split, dataset in datasets.items():
            require_same(dataset, open_dataset(f"tar:{folder}", split, paths=paths), folder)
        log.info(f"{dataset.target}: packed and read back; name it --target tar:{folder}")
    datasets.pop(UNLABELLED, None)  # compared with the others by `pipeline.data.pools`
    for sentence in same_bytes(spec, datasets, paths.index_dir):
        log.warning(sentence)
    return rows


def open_dataset(
    target: str, split: str, *, paths: Paths, limit: int | None = None, said: set[str] | None = None
) -> Dataset:
    """Open and validate one split of a named target, logging remarks on it.

    `said` holds remarks already logged for other splits, which are not repeated.
    """
    dataset = load_shared(parse_target(target), split, paths=paths, limit=limit)
    said = set() if said is None else said
    for note in (*dataset.notes, *empty_classes(dataset)):
        if note not in said:
            said.add(note)
            log.warning(note)
    return dataset
