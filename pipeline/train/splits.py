"""The splits of a run: what it trains on, what chooses its best epoch, and what scores it; they do not
overlap.

For a folder without a val split, a fixed fraction of each class's training samples chooses. For the paper's
targets the test split chooses, as in its tables, unless --val-share is given.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.data import (
    UNLABELLED,
    Dataset,
    DatasetSpec,
    Mask,
    Pool,
    has_val,
    listed_in,
    open_dataset,
    open_pools,
    parse_target,
    subset,
)
from pipeline.runtime import Paths
from pipeline.train.config import TrainConfig
from sskt.errors import RunError, SettingError, shown
from sskt.recipes import recipe_for

log = logging.getLogger(__name__)

OWN_VAL_SHARE = 0.1  # for a user's folder without a val split


@dataclass(frozen=True, slots=True)
class Splits:
    """`val` is None if no epoch is chosen, or the test split chooses; `chosen_on` as in `TrainConfig`."""

    whole: Dataset  # all training samples, `val` included, with all their labels
    train: Dataset
    test: Dataset
    val: Dataset | None
    val_share: float  # fraction of the training samples that are `val`
    chosen_on: str | None
    pools: tuple[Pool, ...] = ()  # samples without labels that are trained on beside `train`

    @property
    def named(self) -> dict[str, Dataset]:
        """The splits with all their labels, including those that are hidden in training."""
        train = self.whole.take(np.flatnonzero(np.isin(self.whole.ids, self.train.ids)))
        parts = {"train": train, "val": self.val, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}

    def contents(self) -> dict[str, str]:
        """The content sha256 of each split and pool."""
        contents = {"train": self.train.content_sha256, "test": self.test.content_sha256}
        if self.val is not None:
            contents["val"] = self.val.content_sha256
        pools = {pool_key(number): pool.dataset for number, pool in enumerate(self.pools)}
        return contents | {key: dataset.content_sha256 for key, dataset in pools.items()}


def pool_key(number: int) -> str:
    """The name of a pool in a run's record: unlabelled-1, unlabelled-2, ..."""
    return f"{UNLABELLED}-{number + 1}"


def open_splits(
    target: str,
    *,
    paths: Paths,
    limit: int | None = None,
    val_share: float | None = None,
    chosen_on: str | None = None,
    labels_per_class: int | None = None,
    labelled_list: Path | None = None,
    unlabelled: Sequence[str] = (),
    tests: bool = True,
) -> Splits:
    """The splits of a run. `limit` counts training samples; `val_share` is the fraction of them that chooses
    the best epoch (None: the target's default; 0: none is chosen). With `labels_per_class`, only that many
    training samples per class keep their labels; with `labelled_list`, those that the file names (see
    `listed_in`). `unlabelled` names the pools to train on as well (see `pool_names`). `tests`: whether the
    test split scores the run, for messages.

    `chosen_on` is "test" for an earlier run that was started so. Raises SettingError for an impossible
    fraction, and RunError if the test split has unlabelled samples or shares samples with a pool.
    """
    splits = _open_splits(target, paths, limit, val_share, chosen_on, tests=tests)
    for name, part in splits.named.items():
        if name != "train" and not part.is_labelled.all():
            raise RunError(
                f"{target}: {len(part) - len(part.labelled):,} of {len(part):,} samples of the {name} split "
                f"have no label, and it scores; move them beside the train split, as unlabelled/"
            )
    if labels_per_class is not None:
        splits = replace(splits, train=keep_labels(splits.train, labels_per_class))
    if labelled_list is not None:
        splits = replace(splits, train=keep_listed(splits, labelled_list, parse_target(target), paths))
    return replace(splits, pools=_open_pools(target, unlabelled, splits, paths))


def _open_pools(target: str, names: Sequence[str], splits: Splits, paths: Paths) -> tuple[Pool, ...]:
    """Open the pools `names`. Logs how many of their samples are in other splits; raises RunError if any are
    in the test split.
    """
    pools = open_pools(target, names, paths=paths)
    for pool in pools:
        if not pool.can_be_compared(splits.test):
            log.info(
                f"{shown(pool.name)} and {shown(target)}: one is known by digests of files, one by those of "
                f"pixels, so samples that are in both are not found"
            )
        pool.require_apart(splits.test)
        for name, part in splits.named.items():
            if name != "test" and (n := int(pool.shared_with(part).sum())):
                log.warning(
                    f"{shown(pool.name)}: {n:,} of {len(pool.dataset):,} samples without labels are in the "
                    f"{name} split as well, with the same contents"
                )
    return tuple(pools)


def keep_listed(splits: Splits, file: Path, spec: DatasetSpec, paths: Paths) -> Dataset:
    """The training samples, with the labels of those that a file names (see `listed_in`). The file may also
    name samples that choose the best epoch.
    """
    listed = listed_in(file, splits.whole, paths.data_dir / spec.root)
    kept = np.isin(splits.train.ids, splits.whole.ids[listed])
    hidden = splits.train.hide_labels(~kept)
    log.info(
        f"labels: {len(hidden.labelled):,} of {len(hidden):,} training samples keep theirs ({file}), those "
        f"of the others are hidden"
    )
    if not len(hidden.labelled):
        raise RunError(f"{file}: names no sample that is trained on; name some")
    return hidden


def keep_labels(dataset: Dataset, n_per_class: int) -> Dataset:
    """The same samples, with the labels of `n_per_class` of each class (all, if it has fewer). The draw is
    fixed, and a smaller one is part of a larger one. With several labels per image, images are drawn by
    their first label.
    """
    ranks = subset.rank_in_class(dataset.labels, subset.draws(dataset.ids))
    hidden = dataset.hide_labels(ranks >= n_per_class)
    log.info(
        f"labels: {len(hidden.labelled):,} of {len(dataset):,} training samples keep theirs "
        f"({n_per_class} per class), those of the others are hidden"
    )
    return hidden


def _open_splits(
    target: str,
    paths: Paths,
    limit: int | None,
    val_share: float | None,
    chosen_on: str | None,
    *,
    tests: bool,
) -> Splits:
    if val_share is not None and not 0 <= val_share < 1:
        raise SettingError("val_share", f"is {val_share}, expected at least 0 and less than 1")
    spec, said = parse_target(target), set[str]()
    once = ", and the test split scores once, at the end" if tests else ""

    def opened(split: str, limit: int | None = None) -> Dataset:
        return open_dataset(target, split, paths=paths, limit=limit, said=said)

    train = opened("train", limit)
    if chosen_on == "test":
        split = _scoring_split(target, paths, chosen_on)
        return Splits(train, train, opened(split), None, 0.0, "test")
    test = opened("test")
    if has_val(spec, paths.data_dir):
        if val_share:
            raise RunError(
                f"--val-share {val_share:g} is of the training samples, and {target} has a val split that "
                f"chooses the best epoch; leave it out"
            )
        if val_share is None:
            log.info(f"the val split chooses the best epoch{once}")
            return Splits(train, train, test, opened("val"), 0.0, "val")
    elif val_share is None and not spec.is_own_folder:
        log.info(_on_test(target))
        return Splits(train, train, test, None, 0.0, "test")
    share = OWN_VAL_SHARE if val_share is None else val_share
    chosen = choosing(train, share)
    if share and not chosen.any():
        if val_share:
            remedy = "give --val-share 0" if tests else "add some"
            raise RunError(f"--val-share {share:g}: no class of {target} has two samples; {remedy}")
        share = 0.0
    if not share:
        log.info("no epoch is chosen: the student is the last epoch's, which the test split scores once")
        return Splits(train, train, test, None, 0.0, None)
    log.info(
        f"{chosen.sum():,} of {len(train):,} training samples are not trained on and choose the best epoch "
        f"(--val-share {share:g}){once}"
    )
    left, val = (train.take(np.flatnonzero(part)) for part in (~chosen, chosen))
    return Splits(train, left, test, val, share, "val")


def choosing(dataset: Dataset, share: float) -> Mask:
    """Which training samples choose the best epoch: bool (N,).

    In each class, the fraction `share` (rounded, at least one sample, never all) with the smallest content
    digests, so that a moved or renamed sample stays in its part. With several labels per image, the first one
    is its class; those without any are one too.
    """
    keys = dataset.contents[:, :8].copy().view(">u8")[:, 0].astype(np.uint64)
    classes = dataset.labels + 1
    counts = np.bincount(classes)
    wanted = np.maximum(1, np.rint(counts * share)) if share else np.zeros(len(counts))
    taken = np.minimum(wanted, np.maximum(counts - 1, 0))
    chosen: Mask = subset.rank_in_class(classes, keys) < taken[classes]
    return chosen


def scoring_split(config: TrainConfig, target: str, paths: Paths) -> str:
    """The split that scores a run, whose target is now `target`. In runs from before val and test were
    separated, val scored if it existed.
    """
    return _scoring_split(target, paths, config.chosen_on)


def _scoring_split(target: str, paths: Paths, chosen_on: str | None) -> str:
    return "val" if chosen_on == "test" and has_val(parse_target(target), paths.data_dir) else "test"


def _on_test(target: str) -> str:
    as_papers = ", as the paper's tables do" if recipe_for(target).published else ""
    return (
        f"the best epoch is chosen on the test split{as_papers}; --val-share 0.1 chooses on training labels "
        f"instead"
    )
