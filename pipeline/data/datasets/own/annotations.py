"""What a user's list, shards or tables say of their images: splits and labels, checked; and datasets of it.

Splits follow the rules of folders: val is the test split where there is no other, and where nothing but train
is named, a fixed fifth of each class is held out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.data.datasets.class_folders import hold_out
from pipeline.data.datasets.dataset import UNLABELLED, Dataset, DatasetSpec
from pipeline.data.datasets.folder_splits import TEST, TRAIN, VAL, split_named
from pipeline.data.datasets.image_files import ImageListing, to_dataset
from sskt.errors import TargetError, few, shown


@dataclass(frozen=True, slots=True, eq=False)
class Annotations:
    """What is said of N images, in their order.

    source: what says it, for messages. places: where each is said, such as "line 7". keys: each one's name,
    by which a fifth is held out. splits: each one's, as written; None where nothing names any. labels: each
    one's classes, one unless `several`, none for an image without a label, or, of `several`, one that shows
    no class. classes: names in label order, where declared. notes: sentences for the user. ids: int64 (N,),
    where samples have some of their own, unique in each split.
    """

    source: str
    places: Sequence[str]
    keys: Sequence[str]
    splits: Sequence[str] | None
    labels: Sequence[tuple[str, ...]]
    several: bool
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    ids: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Checked annotations of N images: `keys`, bytes (N,), as in `Annotations`; `splits`, each one's, None
    where none is named; `labels` int64 (N,), -1 for none; `multi_hot` int8 (N, C) of several labels each.
    """

    keys: NDArray[np.bytes_]
    splits: NDArray[np.str_] | None
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    multi_hot: NDArray[np.int8] | None
    ids: NDArray[np.int64] | None = None

    def dataset(self, spec: DatasetSpec, split: str, listing: ImageListing) -> Dataset:
        """The dataset of one split. `listing`: the images that can be used, with their rows here as ids.

        A sample's id is its own, else its position in the split, also counting those that cannot be used, or,
        where no split is named, among all samples. Raises TargetError for a split without usable images.
        """
        rows, splits = listing.ids, self.splits
        if self.ids is not None:
            listing = replace(listing, ids=self.ids[rows])
        elif splits is not None:
            place = np.zeros(len(splits), dtype=np.int64)
            for each in set(splits.tolist()):
                place[splits == each] = np.arange((splits == each).sum())
            listing = replace(listing, ids=place[rows])
        multi_hot = None if self.multi_hot is None else self.multi_hot[rows]
        whole = to_dataset(listing, spec, split, self.classes, self.labels[rows], multi_hot)
        if splits is None:
            in_test = hold_out(self.keys[rows], np.maximum(whole.labels, 0))
            kept = in_test if split == TEST else ~in_test
            if split == TEST:
                n = int(in_test.sum())
                note = f"has no test split, so a fixed fifth of each class is held out ({n:,} images)"
                whole = replace(whole, notes=(*whole.notes, f"{shown(spec.as_given)}: {note}"))
        else:
            kept = splits[rows] == split
        if not kept.any():
            raise TargetError(
                f"{shown(spec.as_given)}: no image of the {split} split can be used; restore some"
            )
        return whole.take(np.flatnonzero(kept))


def splits_of(names: Sequence[str]) -> dict[str, str]:
    """The splits that words mean: word -> split; val is the test split where no word means that one. A word
    that means none is left out.
    """
    meant = {name: split for name in dict.fromkeys(names) if (split := split_named(name)) is not None}
    if VAL in meant.values() and TEST not in meant.values():
        meant = {name: TEST if split == VAL else split for name, split in meant.items()}
    return meant


def all_unlabelled(names: Sequence[str]) -> bool:
    """Whether all of these words mean the split of samples without labels."""
    return all(split_named(name) == UNLABELLED for name in names)


def check(said: Annotations, *, labelled: bool = True) -> Samples:
    """Check what is said. Raises TargetError, with the count and the first place, for a split that is unknown
    or missing, a label that is missing or that no training image has, and fewer than two classes.

    Unless `labelled`, labels are neither checked nor read, for a pool.
    """
    splits = None if said.splits is None else _splits(said, said.splits, labelled=labelled)
    keys = np.array([key.encode("utf-8", "surrogateescape") for key in said.keys], dtype=np.bytes_)
    if not labelled:
        return Samples(keys, splits, (), np.full(len(keys), -1, dtype=np.int64), None, said.ids)
    training = np.ones(len(said.labels), dtype=bool) if splits is None else splits == TRAIN
    counted = np.ones(len(said.labels), dtype=bool) if splits is None else splits != UNLABELLED
    if not said.several:
        missing = [row for row in np.flatnonzero(counted).tolist() if not said.labels[row]]
        _refuse(said, missing, "have no label", "", "label them, or give them the split unlabelled")
    classes = _classes(said, training)
    label_of = {name: label for label, name in enumerate(classes)}
    unknown = [
        row
        for row in np.flatnonzero(counted).tolist()
        if any(name not in label_of for name in said.labels[row])
    ]
    if unknown:
        name = next(name for name in said.labels[unknown[0]] if name not in label_of)
        found = f", with {name!r}"
        which = (
            "a label that no training image has" if said.classes is None else "a label that is not declared"
        )
        _refuse(said, unknown, f"have {which}", found, f"expected one of {few(classes)}; correct the label")
    multi_hot = np.zeros((len(said.labels), len(classes)), dtype=np.int8) if said.several else None
    labels = np.full(len(said.labels), -1, dtype=np.int64)
    for row in np.flatnonzero(counted).tolist():
        known = sorted(label_of[name] for name in said.labels[row])
        if known:
            labels[row] = known[0]
        if multi_hot is not None:
            multi_hot[row, known] = 1
    return Samples(keys, splits, classes, labels, multi_hot, said.ids)


def _splits(said: Annotations, names: Sequence[str], *, labelled: bool) -> NDArray[np.str_] | None:
    """Each image's split; None if all are for training. Raises TargetError as `check` does."""
    meant = splits_of(names)
    strange = [row for row, name in enumerate(names) if name not in meant]
    if strange:
        found = f", with {names[strange[0]]!r}"
        _refuse(
            said,
            strange,
            "have a split that is unknown",
            found,
            f"expected {TRAIN}, {VAL}, {TEST} or {UNLABELLED}",
        )
    if set(meant.values()) == {TRAIN}:
        return None
    splits = np.array([meant[name] for name in names])
    for split, wanted in ((TRAIN, TRAIN), (TEST, f"{VAL} or {TEST}")):
        if labelled and split not in meant.values():
            counts = ", ".join(f"{(splits == each).sum():,} {each}" for each in dict.fromkeys(meant.values()))
            raise TargetError(
                f"{shown(said.source)}: no image is of the split {wanted}, found {counts}; name some, or no "
                f"split but {TRAIN}, of which a fifth is then held out"
            )
    return splits


def _classes(said: Annotations, training: NDArray[np.bool_]) -> tuple[str, ...]:
    """Class names in label order: as declared, else those of the training images, sorted; as numbers, where
    all are whole numbers.
    """
    classes = said.classes
    if classes is None:
        found = {name for row in np.flatnonzero(training).tolist() for name in said.labels[row]}
        by_number = all(name.isdecimal() and str(int(name)) == name for name in found)
        classes = tuple(sorted(found, key=int) if by_number else sorted(found))
    if len(classes) < 2:
        one = f"one class ({shown(classes[0])})" if classes else "no label"
        raise TargetError(
            f"{shown(said.source)}: its training images have {one}, expected at least two classes, "
            f"since students are classifiers; correct the labels"
        )
    return classes


def _refuse(said: Annotations, rows: Sequence[int], what: str, found: str, remedy: str) -> None:
    """Raise TargetError about these rows, if there are any."""
    if rows:
        raise TargetError(
            f"{shown(said.source)}: {len(rows):,} of {len(said.labels):,} images {what}, the first is at "
            f"{shown(said.places[rows[0]])}{shown(found)}; {shown(remedy)}"
        )
