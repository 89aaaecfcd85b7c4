"""Stage one: run the frozen sources over every planned view of a target and keep their logits (SSKT eq. 5,
6).

Work is cut into units, (view, block of samples). One pass over the pictures of a unit feeds every source that
still lacks it, and each source's unit is committed whole, so a stopped run is continued by running it again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import Any

from cache import Location
from pipeline.data.augmentation import DEFAULT_VIEWS, EARLIER, Augmentation
from pipeline.data.datasets import parse_target, prepared
from pipeline.data.datasets.registry import target_slug
from pipeline.data.prepare import open_dataset
from pipeline.data.render import open_renderer
from pipeline.precompute.estimate import estimate_job
from pipeline.precompute.worker import Worker
from pipeline.runtime import (
    Execution,
    Paths,
    Progress,
    World,
    choose_execution,
    coerce,
    mute_remarks,
    render_batch_size,
    require_named,
)
from pipeline.stores import (
    Job,
    SourceStore,
    destination,
    log_knowledge,
    open_named,
    open_source_store,
    sound_stores,
    with_recorded_weights,
)
from sskt.errors import RunError, TargetError
from sskt.sources import ClipFrames, InputMap, Source, source_slug

log = logging.getLogger(__name__)


@dataclass(slots=True)
class StoreReport:
    """What stage one did for one source."""

    source: str
    path: Location
    n_samples: int
    n_classes: int
    views: int
    rows_done: int = 0  # rows computed by this call; those of earlier calls and other processes do not count
    write_s: float = 0.0
    wall_s: float = 0.0  # of drawing, asking and writing; stores and sources are open by then
    nbytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        rate = self.rows_done / self.wall_s if self.rows_done else None
        return {**asdict(self), "path": str(self.path), "images_s": rate}


def fill_stores(job: Job, *, cache_dir: Location, execution: Execution, world: World) -> list[StoreReport]:
    """Fill the stores of the job's sources for views 0..views-1; finished units are left alone.

    Other processes may work on the same stores: units are shared by `share` and by claims. Raises
    StoreMismatch if a store with the same fingerprint was made at another precision or its probe pictures no
    longer come out the same, SourceError naming the samples if a source gives logits that are not finite,
    CacheError if the store cannot be written. Units finished before an error or Ctrl-C are kept.
    """
    if job.views < 1:
        raise RunError(f"--views is {job.views}, expected at least 1")
    works = [
        open_source_store(job, source, input_map, cache_dir, execution) for source, input_map in job.sources
    ]
    started = perf_counter()
    todo = sum(len(work.pending) for work in works)
    if not todo:
        log.info(f"{job.name}: all {job.views} view(s) of {len(works)} source(s) are already there")
    else:
        batch = render_batch_size(max(work.frozen.forward.batch_size for work in works if work.frozen))
        renderer = open_renderer(job.dataset, job.source_plan, execution, batch_size=batch)
        with closing(renderer), Progress() as progress:
            crew = Worker(job.dataset, works, renderer, world, batch_size=batch, progress=progress)
            crew.work(job.views)
        for work in works:
            if work.remark:
                log.info(work.remark)
        left = sum(len(work.store.pending(job.views)) for work in works)
        if left:
            log.info(
                f"{job.name}: {left} units are the other ranks'; run the command again if one of them is lost"
            )
    if world.rank == 0:
        for work in works:
            log_knowledge(work.store, work.source.spec, job.dataset)
    return [_report(work, job, perf_counter() - started) for work in works]


def _report(work: SourceStore, job: Job, wall_s: float) -> StoreReport:
    return StoreReport(
        work.source.spec.name,
        work.store.path,
        len(job.dataset),
        work.store.n_classes,
        job.views,
        rows_done=work.rows_done,
        write_s=work.write_s,
        wall_s=wall_s,
        nbytes=work.store.nbytes,
    )


def precompute(
    targets: str | Sequence[str],
    sources: str | Sequence[str],
    *,
    views: int = DEFAULT_VIEWS,
    augmentation: Augmentation | None = None,
    paths: Paths | None = None,
    execution: Execution | None = None,
    limit: int | None = None,
    top_k: int | None = None,
) -> list[StoreReport]:
    """Stage one for each target, or for every prepared one if none is named; see
    `pipeline.precompute.run.precompute`. Processes that fill the same stores share the work.
    """
    paths, execution = paths or Paths(), execution or choose_execution()
    world, augmentation = World.from_environment(), augmentation or Augmentation()
    jobs = _jobs(targets, sources, views, augmentation, paths, limit, top_k)
    for job in jobs:
        _mention_earlier(job, augmentation, paths)
    return [
        report
        for job in jobs
        for report in fill_stores(job, cache_dir=paths.cache_dir, execution=execution, world=world)
    ]


def estimate(
    targets: str | Sequence[str],
    sources: str | Sequence[str],
    *,
    views: int = DEFAULT_VIEWS,
    augmentation: Augmentation | None = None,
    paths: Paths | None = None,
    execution: Execution | None = None,
    limit: int | None = None,
    top_k: int | None = None,
) -> list[dict[str, Any]]:
    """What `precompute` would cost; see `pipeline.precompute.estimate.estimate`."""
    paths, execution = paths or Paths(), execution or choose_execution()
    jobs = _jobs(targets, sources, views, augmentation or Augmentation(), paths, limit, top_k)
    return [
        {"target": job.name, **row}
        for job in jobs
        for row in estimate_job(job, cache_dir=paths.cache_dir, execution=execution)
    ]


def _jobs(
    targets: str | Sequence[str],
    sources: str | Sequence[str],
    views: int,
    augmentation: Augmentation,
    paths: Paths,
    limit: int | None,
    top_k: int | None,
) -> list[Job]:
    """One job a target, or one for each part of a clip that some sources look at; everything is opened before
    the first is done, so that a wrong name costs no work.

    Raises TargetError, saying how to prepare one, if nothing is named and nothing is prepared.
    """
    targets, sources = coerce.texts(targets, "targets"), coerce.texts(sources, "sources")
    views, limit = coerce.whole(views, "views", low=1), coerce.whole_or_none(limit, "limit")
    top_k = coerce.whole_or_none(top_k, "top_k", low=0)
    names = list(targets) or prepared(paths.data_dir, paths.index_dir)
    if not names:
        raise TargetError(
            f"no target is prepared under {paths.data_dir}; `sskt prepare --target cifar10` downloads one, "
            f"and --target imagefolder:PATH takes a folder of pictures (sskt targets lists all)"
        )
    if not targets:
        log.info(f"targets prepared under {paths.data_dir}: {', '.join(names)}")
    specs = [parse_target(name) for name in names]
    require_named(paths, sources)
    opened = _opened(sources, _with_recorded_weights(paths, names, sources))
    jobs = []
    for name, spec in zip(names, specs, strict=True):
        dataset = open_dataset(name, "train", paths=paths, limit=limit)
        plan = augmentation.training_plan(spec)
        together: dict[ClipFrames | None, list[tuple[Source, InputMap]]] = {}
        for source in opened:
            input_map = augmentation.input_map(spec, source.spec)
            size = source.spec.contract.size
            if size is not None and size != input_map.side_px:
                log.warning(
                    f"{source.spec.name} declares images of {size} px and is shown {input_map.side_px} px"
                )
            together.setdefault(input_map.frames, []).append((source, input_map))
        jobs += [Job(name, dataset, alike, plan, views, top_k) for alike in together.values()]
    return jobs


def _mention_earlier(job: Job, augmentation: Augmentation, paths: Paths) -> None:
    """Say where a store that sources filled before they saw what the released code shows them would do."""
    spec = parse_target(job.target)
    for source, input_map in job.sources:
        earlier = replace(augmentation, source_input=EARLIER).input_map(spec, source.spec)
        if earlier == input_map:
            continue
        with mute_remarks():
            now, before = (destination(job, source, each, paths.cache_dir) for each in (input_map, earlier))
        if now.exists:
            continue
        if before.exists:
            log.warning(
                f"{source.spec.name}: {before.path} was made before sources saw what the released code shows "
                f"them, a new store is filled; --source-input earlier goes on with that one"
            )


def _with_recorded_weights(paths: Paths, targets: Sequence[str], sources: Sequence[str]) -> Paths:
    """`places`, with the weights that the targets' stores were made from and that are still there."""
    for source in sources:
        folders = [paths.cache_dir / target_slug(name) / "train" / source_slug(source) for name in targets]
        stores = [store for folder in folders for store in sound_stores(folder)]
        paths = with_recorded_weights(source, paths, stores)
    return paths


def _opened(sources: Sequence[str], paths: Paths) -> list[Source]:
    """Every source once, whatever the number of its names: they would all fill the same store."""
    opened: dict[tuple[str, str], tuple[str, Source]] = {}
    for name in dict.fromkeys(sources):
        source = open_named(name, paths)
        first, _ = opened.setdefault((source.spec.name, source.weights_sha256), (name, source))
        if first != name:
            log.info(f"{name} is the same source as {first}; it is computed once")
    return [source for _, source in opened.values()]
