"""Remarks on a target's samples: classes without any, and files with the same bytes.

Files that are in two splits make a score look better than it is; files under two classes contradict each
other. Neither is refused, since official datasets have some.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.datasets.checked_files import facts_file
from pipeline.data.datasets.dataset import Dataset, DatasetSpec
from pipeline.data.datasets.left_out import write_list
from sskt.errors import few, shown


def same_bytes(spec: DatasetSpec, datasets: Mapping[str, Dataset], index_dir: Path) -> list[str]:
    """One sentence per problem; every file in question is listed below `index_dir`.

    datasets: of files or videos, by split, with the same classes.
    """
    if not datasets or any(dataset.kind == "array" for dataset in datasets.values()):
        return []
    splits, lengths = list(datasets), [len(dataset) for dataset in datasets.values()]
    contents = np.concatenate([dataset.contents for dataset in datasets.values()])
    keys = np.ascontiguousarray(contents[:, :8]).view("<u8").ravel()  # half of the digest suffices
    _, firsts, group, sizes = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    if (sizes == 1).all():
        return []
    split_of = np.repeat(np.arange(len(splits)), lengths)
    labels = np.concatenate([dataset.labels for dataset in datasets.values()])
    inside = np.zeros((len(splits), len(sizes)), dtype=bool)
    inside[split_of, group] = True
    contradicting = np.bincount(group, weights=labels != labels[firsts][group], minlength=len(sizes)) > 0
    if any(dataset.multi_hot is not None for dataset in datasets.values()):
        contradicting[:] = False  # of an image's several labels, only the first is compared
    where = _list(spec, datasets, index_dir, group, sizes)
    name, listed = shown(spec.name), f" ({where})" if where else ""
    sentences = []
    for late in range(1, len(splits)):
        for early in range(late):
            n = int((inside[late] & inside[early])[group[split_of == late]].sum())
            if n:
                sentences.append(
                    f"{name}: {n:,} of {lengths[late]:,} files of the {splits[late]} split are in the "
                    f"{splits[early]} split as well, byte by byte{listed}; remove them from one"
                )
    n = int(contradicting[group].sum())
    if n:
        sentences.append(
            f"{name}: {n:,} files lie under another class as well, byte by byte{listed}; remove what is wrong"
        )
    n = int((sizes - 1)[(inside.sum(axis=0) == 1) & ~contradicting].sum())
    if n:
        sentences.append(f"{name}: {n:,} files are copies of others of their class and split{listed}")
    return sentences


def empty_classes(dataset: Dataset) -> list[str]:
    """A sentence on the classes that a split has no sample of, if there are any."""
    counts = zip(dataset.classes, dataset.class_counts, strict=True)
    empty = [shown(name) for name, n in counts if n == 0]
    if not empty:
        return []
    n = f"{len(empty):,} of the {len(dataset.classes):,} classes ({few(empty)})"
    return [f"{shown(dataset.target)}: the {dataset.split} split has no sample of {n}"]


def _list(
    spec: DatasetSpec,
    datasets: Mapping[str, Dataset],
    index_dir: Path,
    group: NDArray[np.int64],
    sizes: NDArray[np.int64],
) -> Path | None:
    """Write every file that has a twin, next to its twins: path, split, class and content."""
    splits = list(datasets.items())
    begins = np.cumsum([0, *(len(dataset) for _, dataset in splits)])
    twins = np.flatnonzero(sizes[group] > 1)
    lines = []
    for place in twins[np.argsort(group[twins], kind="stable")]:
        at = int(np.searchsorted(begins, place, side="right")) - 1
        split, dataset = splits[at]
        row = int(place - begins[at])
        content = dataset.contents[row].tobytes().hex()[:12]
        label = dataset.labels[row]
        lines.append((dataset.name_of(row), split, dataset.classes[label] if label >= 0 else "-", content))
    kept = facts_file(index_dir, spec.slug, spec.root)
    return write_list(kept, "same-bytes", lines)
