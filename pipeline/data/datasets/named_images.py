"""Images that a user names one by one, as samples without labels. Nothing is kept of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.data.datasets.bit_depth import FULL, depth_of
from pipeline.data.datasets.checked_files import FACTS, Facts
from pipeline.data.datasets.dataset import Dataset, Images
from pipeline.data.datasets.image_files import remarks_on
from pipeline.data.datasets.images import FileImages
from pipeline.data.datasets.named_files import NamedFiles
from pipeline.data.datasets.validation import check_unkept


def load_named_images(
    files: NamedFiles,
    rows: Sequence[int],
    classes: tuple[str, ...],
    depth_of_target: Callable[[], int | None],
) -> tuple[Dataset, dict[int, str], list[str]]:
    """The images among the `rows` of `files` that can be decoded, without labels, with their rows as ids; the
    rows that cannot be used, and why; and notes for the user.

    `depth_of_target` is called if there are 16-bit images: the depth at which the student read such images in
    training, None if it read none or that is not known. Then it is the least that holds all of them.
    """
    paths = np.array([os.fsencode(path) for path in files.paths], dtype=np.bytes_)
    facts = np.zeros(len(paths), dtype=FACTS)
    unusable = files.unusable_among(rows)
    sound = np.array([row for row in rows if row not in unusable], dtype=np.int64)
    images = FileImages.below(Path(), paths.tolist())
    unusable |= check_unkept(images, facts, sound)
    depth, notes = _depth(facts, depth_of_target)
    for row in np.flatnonzero(facts["bits"] > depth):  # they would wrap around
        unusable[int(row)] = (
            f"its values use {facts['bits'][row]} bits, and the student was trained on {depth}-bit images"
        )
        facts["valid"][row] = False
    sound = np.flatnonzero(facts["valid"])
    facts = facts[sound]
    notes += remarks_on(paths[sound], facts, "the files given")
    depths = np.where(facts["bits"] > 0, depth, FULL).astype(np.uint8)
    access = images.take(sound).decoded(np.ascontiguousarray(facts["transcode"]), depths)
    sizes, contents = np.ascontiguousarray(facts["size"]), np.ascontiguousarray(facts["content"])
    return unlabelled_dataset("files", classes, sound, sizes, access, contents), unusable, notes


def _depth(facts: Facts, depth_of_target: Callable[[], int | None]) -> tuple[int, list[str]]:
    """The depth at which 16-bit images are read, and a note on it; see `load_named_images`."""
    n, bits = int((facts["bits"] > 0).sum()), int(facts["bits"].max(initial=0))
    if not n:
        return FULL, []
    known = depth_of_target()
    depth = depth_of(bits) if known is None else known
    why = "the fewest bits that hold all of them" if known is None else "as in training"
    return depth, [f"{n:,} 16-bit images are read as {depth}-bit ones, {why}"]


def unlabelled_dataset(
    kind: Literal["files", "video"],
    classes: tuple[str, ...],
    ids: NDArray[np.int64],
    sizes: NDArray[np.int32],
    access: Images,
    contents: NDArray[np.uint8],
) -> Dataset:
    """A dataset of named files, for a student of `classes`; see `Dataset` for the arrays."""
    return Dataset(
        target="the files given",
        split="all",
        kind=kind,
        classes=classes,
        ids=ids,
        labels=np.full(len(ids), -1, dtype=np.int64),
        sizes=sizes,
        contents=contents,
        access=access,
    )
