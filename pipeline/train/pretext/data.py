"""What a pretext task learns from: the training videos of its targets without their labels, and those of them
that are held out.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.data import (
    Augmentation,
    Dataset,
    PretextPlan,
    SortedFrames,
    TrackedPatches,
    join_videos,
    parse_target,
)
from pipeline.runtime import Execution, Paths, World
from pipeline.train.config import TrainConfig
from pipeline.train.pretext.motion import MOTION
from pipeline.train.pretext.per_video import Array, PerVideo
from pipeline.train.pretext.tracks import TRACKS
from pipeline.train.splits import Splits
from sskt.errors import RunError
from sskt.methods import PRETEXT_METHODS

log = logging.getLogger(__name__)

_COMPUTED = "pretext"  # folder of what was computed for videos
_VAL = 1 << 39  # between the ids of a train split and those of a val split


@dataclass(frozen=True, slots=True)
class PretextVideos:
    """The videos of a pretext run. All are of class 0."""

    train: Dataset
    held_out: Dataset
    plan: PretextPlan  # of both
    contents: Mapping[str, str] = field(default_factory=dict)  # digests of what was computed for the videos


def open_pretext(
    config: TrainConfig, splits: Splits, paths: Paths, execution: Execution, world: World
) -> PretextVideos:
    """The videos of `splits` that a task can show, and its plan. Logs how many are too short. Raises RunError
    for settings of other runs, and where too few videos are left.
    """
    _require_of_task(config)
    plan = Augmentation(**config.augmentation).pretext_plan(parse_target(config.target), config.method)
    if splits.val is None:
        raise RunError(
            f"the pretext task {config.method} is scored on videos that are held out, and here are none: "
            f"{config.target} has {len(splits.train)} training videos; give --val-share 0.1, or add videos"
        )
    train = join_videos([splits.train, *(pool.dataset for pool in splits.pools)])
    held_out = join_videos([splits.val])
    if np.isin(held_out.ids, train.ids).any():  # a val split numbers its own videos
        held_out = replace(held_out, ids=held_out.ids + _VAL)
    plan, contents = _with_tables(plan, [train, held_out], paths, execution, world)
    train, held_out = (
        _usable(part, plan, config, name) for part, name in ((train, "training"), (held_out, "held-out"))
    )
    _require_enough(config, train, held_out)
    return PretextVideos(train, held_out, plan, contents)


def _require_of_task(config: TrainConfig) -> None:
    """Raise RunError for settings that a pretext task would ignore."""
    asked = {
        "--labels-per-class": config.labels_per_class is not None,
        "--labelled": config.labelled_list is not None,
        "--labelled-share": config.labelled_share is not None,
        "--ema": config.ema > 0,
    }
    for option, is_asked in asked.items():
        if is_asked:
            raise RunError(f"{option}: the pretext task {config.method} does not read it; leave it out")


def _require_enough(config: TrainConfig, train: Dataset, held_out: Dataset) -> None:
    """Raise RunError if a task that compares videos would see one at a time."""
    n_least = PRETEXT_METHODS[config.method].smallest_batch
    smallest = config.smallest_step(len(train)) // config.ranks
    if smallest < n_least:
        raise RunError(
            f"a step of {config.method} has {smallest} video(s) in each process, and it compares "
            f"{n_least}; raise --batch-size (it is {config.batch_size}), of {len(train):,} videos"
        )
    if len(held_out) < n_least:
        raise RunError(
            f"{len(held_out)} video(s) are held out, and {config.method} compares {n_least}; raise "
            f"--val-share, or add videos"
        )


def _with_tables(
    plan: PretextPlan, parts: list[Dataset], paths: Paths, execution: Execution, world: World
) -> tuple[PretextPlan, dict[str, str]]:
    """The plan with what it needs to know of each video, computed by the first rank, and its digest."""
    if isinstance(plan, SortedFrames):
        tables, digest = _tables(MOTION, parts, paths, execution, world)
        return replace(plan, motion=tables), {MOTION.name: digest}
    if isinstance(plan, TrackedPatches):
        tables, digest = _tables(TRACKS, parts, paths, execution, world)
        return replace(plan, tracks=tables), {TRACKS.name: digest}
    return plan, {}


def _tables(
    quantity: PerVideo, parts: list[Dataset], paths: Paths, execution: Execution, world: World
) -> tuple[dict[int, Array], str]:
    """A quantity of every video by id, and the sha256 of all of them."""
    folder = paths.index_dir / _COMPUTED
    if world.is_first:
        for part in parts:
            quantity.of(part, folder, execution.threads)
    world.broadcast(value=True)  # wait until the first rank has written
    tables: dict[int, Array] = {}
    digest = hashlib.sha256()
    for part in parts:
        for number, array in zip(
            part.ids.tolist(), quantity.of(part, folder, execution.threads), strict=True
        ):
            tables[number] = array
            digest.update(f"{number} {array.dtype.str} {array.shape}".encode() + array.tobytes())
    return tables, digest.hexdigest()


def _usable(dataset: Dataset, plan: PretextPlan, config: TrainConfig, name: str) -> Dataset:
    """The videos that the task can show; says how many it cannot."""
    usable = plan.usable(dataset.ids, dataset.sizes)
    n_left = int(usable.sum())
    if n_left == len(dataset):
        return dataset
    n_out = len(dataset) - n_left
    if not n_left:
        raise RunError(
            f"{config.target}: all {n_out:,} {name} videos {plan.lacking} (the longest has "
            f"{dataset.sizes[:, 0].max()} frames); name another target or task"
        )
    log.warning(
        f"{config.target}: {n_out:,} of {len(dataset):,} {name} videos {plan.lacking}; they are left out"
    )
    return dataset.take(np.flatnonzero(usable))
