"""What a user should know of the samples of a target: classes without any, and files with the same bytes.

Files that are in two splits make a score look better than it is; those under two classes teach two answers to
one question. None is refused: official data sets have some.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.datasets.checked_files import kept_file
from pipeline.data.datasets.dataset import TargetIndex
from pipeline.data.datasets.left_out import write_list
from pipeline.data.datasets.registry import TargetSpec, target_slug
from sskt.names import shown

_NAMED = 5  # classes that a sentence names


def same_bytes(spec: TargetSpec, indexes: Mapping[str, TargetIndex], index_dir: Path) -> list[str]:
    """One sentence for each kind of trouble; every file in question is listed below `index_dir`.

    `indexes`: of files or videos, by split, with the same classes.
    """
    if not indexes or any(index.kind == "array" for index in indexes.values()):
        return []
    splits, lengths = list(indexes), [len(index) for index in indexes.values()]
    contents = np.concatenate([index.contents for index in indexes.values()])
    keys = np.ascontiguousarray(contents[:, :8]).view("<u8").ravel()  # half of the digest is more than enough
    _, firsts, group, sizes = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    if (sizes == 1).all():
        return []
    split_of = np.repeat(np.arange(len(splits)), lengths)
    labels = np.concatenate([index.labels for index in indexes.values()])
    inside = np.zeros((len(splits), len(sizes)), dtype=bool)
    inside[split_of, group] = True
    contradicting = np.bincount(group, weights=labels != labels[firsts][group], minlength=len(sizes)) > 0
    if any(index.presence is not None for index in indexes.values()):
        contradicting[:] = False  # of several labels an image, the one that is compared says too little
    where = _list(spec, indexes, index_dir, group, sizes)
    name, listed = shown(spec.name), f" ({where})" if where else ""
    said = []
    for late in range(1, len(splits)):
        for early in range(late):
            n = int((inside[late] & inside[early])[group[split_of == late]].sum())
            if n:
                said.append(
                    f"{name}: {n:,} of {lengths[late]:,} files of the {splits[late]} split are in the "
                    f"{splits[early]} split as well, byte by byte{listed}; remove them from one"
                )
    n = int(contradicting[group].sum())
    if n:
        said.append(
            f"{name}: {n:,} files lie under another class as well, byte by byte{listed}; remove what is wrong"
        )
    n = int((sizes - 1)[(inside.sum(axis=0) == 1) & ~contradicting].sum())
    if n:
        said.append(f"{name}: {n:,} files are copies of others of their class and split{listed}")
    return said


def empty_classes(index: TargetIndex) -> list[str]:
    """A sentence on classes that a split has no sample of, if there are any."""
    counts = np.bincount(index.labels, minlength=len(index.classes))
    empty = [shown(name) for name, n in zip(index.classes, counts, strict=True) if n == 0]
    if not empty or index.presence is not None:
        return []
    more = f" and {len(empty) - _NAMED:,} more" if len(empty) > _NAMED else ""
    n = f"{len(empty):,} of the {len(index.classes):,} classes ({', '.join(empty[:_NAMED])}{more})"
    return [f"{shown(index.target)}: the {index.split} split has no sample of {n}"]


def _list(
    spec: TargetSpec,
    indexes: Mapping[str, TargetIndex],
    index_dir: Path,
    group: NDArray[np.int64],
    sizes: NDArray[np.int64],
) -> Path | None:
    """Write every file that has a twin, twins together: path, split, class and content."""
    splits = list(indexes.items())
    begins = np.cumsum([0, *(len(index) for _, index in splits)])
    places = np.flatnonzero(sizes[group] > 1)
    lines = []
    for place in places[np.argsort(group[places], kind="stable")]:
        at = int(np.searchsorted(begins, place, side="right")) - 1
        split, index = splits[at]
        row = int(place - begins[at])
        content = index.contents[row].tobytes().hex()[:12]
        lines.append((index.name_of(row), split, index.classes[index.labels[row]], content))
    kept = kept_file(index_dir, target_slug(spec.name), spec.root or Path(spec.name))
    return write_list(kept, "same-bytes", lines)
