"""Pools of samples without labels, which a student is trained on beside its target's own: the images in the
target's own `unlabelled` folder, the training split of another target, or any folder of images.

Each is a dataset with an index and stores of its own, so several targets can share it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.datasets import (
    TARGETS,
    UNLABELLED,
    UNLABELLED_VIDEOS,
    Dataset,
    family_of,
    has_unlabelled,
    parse_target,
    path_family,
)
from pipeline.data.prepare import open_dataset
from pipeline.runtime import Paths
from sskt.errors import RunError, shown

log = logging.getLogger(__name__)

NO_POOL = "none"  # named instead of a pool: the target's own is not wanted


@dataclass(frozen=True, slots=True)
class Pool:
    """`name` is that of a target, whose labels are not read; the target's own name stands for its own
    samples without labels.
    """

    name: str
    dataset: Dataset  # as it is by itself

    def shared_with(self, dataset: Dataset) -> NDArray[np.bool_]:
        """Which of the pool's samples have the contents of one of `dataset`: bool (N,)."""
        shared: NDArray[np.bool_] = np.isin(_keys(self.dataset), _keys(dataset))
        return shared

    def require_apart(self, test: Dataset) -> None:
        """Raise RunError if a sample of the pool is in the test split: its score would be too good."""
        shared = np.flatnonzero(self.shared_with(test))
        if not len(shared):
            return
        row = int(shared[0])
        twin = int(np.flatnonzero(_keys(test) == _keys(self.dataset)[row])[0])
        raise RunError(
            f"--unlabelled {shown(self.name)}: {len(shared):,} of {len(self.dataset):,} samples are in the "
            f"{test.split} split of {shown(test.target)} as well, with the same contents, which would leak "
            f"into its score: {self.dataset.name_of(row)} is {test.name_of(twin)}; remove them from one"
        )

    def can_be_compared(self, dataset: Dataset) -> bool:
        """Whether both have contents of one kind: digests of pixels, or of files."""
        return (self.dataset.kind == "array") == (dataset.kind == "array")


def pool_names(target: str, asked: Sequence[str], *, paths: Paths) -> tuple[str, ...]:
    """The pools of a target, as targets are named: what a user's folder has of its own, then what is `asked`
    for, names of targets and folders; "none" among them leaves out the folder's own.

    Raises RunError for a pool that is named twice, or cannot be one.
    """
    spec = parse_target(target)
    takes_own = NO_POOL not in asked and spec.is_own_folder and has_unlabelled(spec, paths.data_dir)
    own = (target,) if takes_own else ()
    asked = [name for name in asked if name != NO_POOL]
    names: dict[str, str] = {parse_target(name).as_given: name for name in own}
    for name in (as_target(name, videos=spec.holds_videos) for name in asked):
        given = parse_target(name).as_given
        if given == spec.as_given:
            if not has_unlabelled(spec, paths.data_dir):
                raise RunError(
                    f"--unlabelled {shown(name)} is the target, which has no samples without labels of its "
                    f"own; leave it out"
                )
            names.setdefault(given, target)
            continue
        if given in names:
            raise RunError(f"--unlabelled {shown(name)} is named twice; leave one out")
        names[given] = name
    return tuple(names.values())


def open_pools(
    target: str, names: Sequence[str], *, paths: Paths, said: set[str] | None = None
) -> list[Pool]:
    """Open the pools `names` of a target; `said` as in `open_dataset`.

    Raises RunError for a pool of images beside a target of videos, or the other way round, and what opening
    a dataset raises.
    """
    spec, pools = parse_target(target), []
    for name in names:
        about = parse_target(name)
        if about.holds_videos != spec.holds_videos:
            holds, wanted = ("videos", "images") if about.holds_videos else ("images", "videos")
            raise RunError(
                f"--unlabelled {shown(name)} holds {holds}, and {shown(target)} holds {wanted}; name a pool "
                f"of {wanted}"
            )
        own = about.as_given == spec.as_given
        split = UNLABELLED if own else family_of(about).pool_split(about, paths.data_dir)
        dataset = open_dataset(name, split, paths=paths, said=said)
        if split != UNLABELLED and has_unlabelled(about, paths.data_dir):
            log.info(
                f"--unlabelled {shown(name)}: its train split is taken; its own samples without labels are a "
                f"pool by themselves, named by their folder"
            )
        pools.append(Pool(name, dataset))
    return pools


def as_target(name: str, *, videos: bool) -> str:
    """A pool's name as a target: a folder becomes unlabelled:PATH, or of `videos` unlabelled-videos:PATH."""
    if name in TARGETS or path_family(name) is not None or name.partition(":")[0] in TARGETS:
        return name
    if not Path(name).expanduser().is_dir():
        raise RunError(f"--unlabelled {shown(name)} is neither a target nor a folder; check it")
    return f"{UNLABELLED_VIDEOS if videos else UNLABELLED}:{name}"


def _keys(dataset: Dataset) -> NDArray[np.uint64]:
    """Half of each sample's digest, which suffices: uint64 (N,)."""
    keys: NDArray[np.uint64] = np.ascontiguousarray(dataset.contents[:, :8]).view("<u8").ravel()
    return keys
