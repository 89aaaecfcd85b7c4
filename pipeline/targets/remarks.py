"""What a user should know of the samples of a target: classes without any, and files with the same bytes.

Files that are in two splits make a score look better than it is; those under two classes teach two answers to
one question. None is refused: official data sets have some.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.targets.index import TargetIndex
from pipeline.targets.left_out import write_list
from pipeline.targets.spec import TargetSpec, target_slug
from sskt.names import shown

_NAMED = 5  # classes that a sentence names


def same_bytes(spec: TargetSpec, indexes: Mapping[str, TargetIndex], index_dir: Path) -> list[str]:
    """One sentence for each kind of trouble; every file in question is listed below `index_dir`.

    `indexes`: of files or videos, by split, with the same classes.
    """
    if not indexes or any(index.kind == "array" for index in indexes.values()):
        return []
    splits = list(indexes)
    contents = np.concatenate([indexes[name].contents for name in splits])
    keys = np.ascontiguousarray(contents).view("V16").ravel()
    _, group, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    group = group.ravel()
    split_of = np.repeat(np.arange(len(splits)), [len(indexes[name]) for name in splits])
    label_of = np.concatenate([indexes[name].labels for name in splits])
    twins = sizes > 1
    if not twins.any():
        return []
    across, contradicting = _mixed(group, split_of, len(sizes)), _mixed(group, label_of, len(sizes))
    if (
        next(iter(indexes.values())).presence is not None
    ):  # several labels an image: the first says too little
        contradicting &= False
    said = []
    where = _list(spec, indexes, index_dir, np.flatnonzero(twins[group]), group)
    listed = f" ({where})" if where else ""
    for test in range(1, len(splits)):
        for first in range(test):
            shared = _groups(group[split_of == test]) & _groups(group[split_of == first])
            if shared:
                n = int(np.isin(group[split_of == test], list(shared)).sum())
                said.append(
                    f"{shown(spec.name)}: {n:,} of {len(indexes[splits[test]]):,} files of the "
                    f"{splits[test]} split are in the {splits[first]} split as well, byte by byte{listed}; "
                    f"remove them from one"
                )
    n = int(contradicting[group].sum())
    if n:
        said.append(
            f"{shown(spec.name)}: {n:,} files lie under another class as well, byte by byte{listed}; remove "
            f"what is wrong"
        )
    plain = twins & ~across & ~contradicting
    n = int((sizes[plain] - 1).sum())
    if n:
        said.append(f"{shown(spec.name)}: {n:,} files are copies of others of their class and split{listed}")
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


def _mixed(group: NDArray[np.int64], value: NDArray[np.int64], n: int) -> NDArray[np.bool_]:
    """Whether the members of each of `n` groups have more than one value: bool (n,)."""
    pairs = np.unique(np.stack([group, value]), axis=1)
    mixed: NDArray[np.bool_] = np.bincount(pairs[0], minlength=n) > 1
    return mixed


def _groups(group: NDArray[np.int64]) -> set[int]:
    return set(group.tolist())


def _list(
    spec: TargetSpec,
    indexes: Mapping[str, TargetIndex],
    index_dir: Path,
    places: NDArray[np.int64],
    group: NDArray[np.int64],
) -> Path | None:
    """Write every file that has a twin, twins together."""
    rows = [(index, split, row) for split, index in indexes.items() for row in range(len(index))]
    lines = []
    for place in sorted(places.tolist(), key=lambda place: (int(group[place]), place)):
        index, split, row = rows[place]
        content = index.contents[row].tobytes().hex()[:12]
        lines.append((index.name_of(row), split, index.classes[index.labels[row]], content))
    return write_list(index_dir / f"{target_slug(spec.name)}.npz", "same-bytes", lines)
