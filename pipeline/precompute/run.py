"""Stage one: run the frozen sources over every planned view of a target and store their logits (SSKT eq. 5,
6), embeddings or maps.

Work is divided into units, (view, block of samples). One pass over a unit's images feeds every source that
still lacks it, and each source's unit is committed whole, so running the same command again continues a
stopped run.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from pipeline.data import (
    DEFAULT_VIEWS,
    EARLIER,
    Augmentation,
    open_dataset,
    open_pools,
    parse_target,
    pool_names,
    prepared,
    target_slug,
)
from pipeline.precompute.engine_ray import fill_with_ray
from pipeline.precompute.estimate import estimate_job
from pipeline.precompute.fill import StoreReport, fill_stores
from pipeline.runtime import (
    Execution,
    Paths,
    World,
    choose_execution,
    coerce,
    mute_remarks,
    require_named,
)
from pipeline.stores import (
    Job,
    destination,
    open_named,
    sound_stores,
    with_recorded_weights,
)
from sskt.errors import RunError, SettingError, TargetError, shown
from sskt.sources import (
    LOGITS_OUTPUT,
    OUTPUT_FORMS,
    ClipFrames,
    InputMap,
    Source,
    as_output,
    source_slug,
    with_usual_output,
)

log = logging.getLogger(__name__)

LOCAL, RAY = ENGINES = "local", "ray"


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
    output: str | Sequence[str] = LOGITS_OUTPUT,
    unlabelled: str | Sequence[str] = (),
    engine: str = LOCAL,
    workers: int | None = None,
) -> list[StoreReport]:
    """Run stage one for each target, or for every prepared one if none is named; see `fill_stores`.

    `engine` "local" computes in this process, which does a rank's share where RANK and WORLD_SIZE are set;
    "ray" on a cluster, with `workers` at a time; see `fill_with_ray`.

    `output`, one or several such as "logits" and "layer4", is asked of sources whose names do not say which,
    as "imagenet@pooled" does; all outputs of a network come from one forward. The samples without labels in a
    user's own folder, and the pools that `unlabelled` names (see `pipeline.data.pools`), get stores of their
    own, under the target's plan; `limit` is not theirs.
    """
    paths, execution = paths or Paths(), execution or choose_execution()
    world, workers = World.from_environment(), coerce.whole_or_none(workers, "workers")
    _require_engine(engine, workers, world)
    arguments = (targets, _with_output(sources, output), views, augmentation or Augmentation(), paths)
    open_jobs = partial(_jobs, *arguments, limit, top_k, unlabelled, mentions=True)
    if engine == RAY:
        return fill_with_ray(open_jobs, cache_dir=paths.cache_dir, execution=execution, n_workers=workers)
    return [
        report
        for job in open_jobs()
        for report in fill_stores(job, cache_dir=paths.cache_dir, execution=execution, world=world)
    ]


def _require_engine(engine: str, workers: int | None, world: World) -> None:
    """Raise SettingError or RunError unless the engine exists and can be used in this way."""
    if engine not in ENGINES:
        raise SettingError("engine", f"is {engine!r}, expected {' or '.join(ENGINES)}")
    if workers is not None and engine != RAY:
        raise SettingError("workers", f"is {workers}, and engine is {engine}; it is for ray alone")
    if engine == RAY and world.size > 1:
        raise RunError(
            f"WORLD_SIZE is {world.size}, and Ray shares the work by itself; unset RANK and WORLD_SIZE"
        )


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
    output: str | Sequence[str] = LOGITS_OUTPUT,
    unlabelled: str | Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Estimate what `precompute` would cost; see `pipeline.precompute.estimate.estimate_job`."""
    paths, execution = paths or Paths(), execution or choose_execution()
    named = _with_output(sources, output)
    jobs = _jobs(targets, named, views, augmentation or Augmentation(), paths, limit, top_k, unlabelled)
    return [
        {"target": job.name, **row}
        for job in jobs
        for row in estimate_job(job, cache_dir=paths.cache_dir, execution=execution)
    ]


def _with_output(sources: str | Sequence[str], output: str | Sequence[str]) -> tuple[str, ...]:
    """Sources by names that say their output. Raises RunError for an unknown one."""
    outputs = coerce.texts(output, "output") or (LOGITS_OUTPUT,)
    for each in outputs:
        if as_output(each) is None:
            raise RunError(f"--output is {each!r}, expected {', '.join(OUTPUT_FORMS)}, such as layer4:6")
    named = coerce.texts(sources, "sources")
    return tuple(dict.fromkeys(with_usual_output(name, each) for name in named for each in outputs))


def _jobs(
    targets: str | Sequence[str],
    sources: tuple[str, ...],
    views: int,
    augmentation: Augmentation,
    paths: Paths,
    limit: int | None,
    top_k: int | None,
    unlabelled: str | Sequence[str],
    *,
    mentions: bool = False,
) -> list[Job]:
    """One job per target and pool, or for clips one per set of frames that sources see. Everything is opened
    before the first job runs, so that a wrong name is found before any work is done. `mentions`: stores that
    were made with `--source-input earlier` are mentioned.

    Raises TargetError, saying how to prepare one, if no target is named and none is prepared.
    """
    targets = coerce.texts(targets, "targets")
    views, limit = coerce.whole(views, "views", low=1), coerce.whole_or_none(limit, "limit")
    top_k = coerce.whole_or_none(top_k, "top_k", low=0)
    asked = coerce.texts(unlabelled, "unlabelled")
    names = list(targets) or prepared(paths.data_dir, paths.index_dir)
    if not names:
        raise TargetError(
            f"no target is prepared under {paths.data_dir}; `sskt prepare --target cifar10` downloads one, "
            f"and --target imagefolder:PATH takes a folder of pictures (sskt targets lists all)"
        )
    if not targets:
        log.info(f"targets prepared under {paths.data_dir}: {', '.join(names)}")
    specs = [parse_target(name) for name in names]
    paths = paths.fetched(sources)
    require_named(paths, sources)
    opened = _open_sources(sources, _with_recorded_weights(paths, names, sources))
    jobs = []
    for name, spec in zip(names, specs, strict=True):
        datasets = {name: [open_dataset(name, "train", paths=paths, limit=limit)]}
        for pool in open_pools(name, pool_names(name, asked, paths=paths), paths=paths):
            log.info(f"{shown(pool.name)}: {len(pool.dataset):,} samples without labels get stores as well")
            datasets.setdefault(pool.name, []).append(pool.dataset)
        plan = augmentation.training_plan(spec)
        by_frames: dict[ClipFrames | None, list[tuple[Source, InputMap]]] = {}
        for each in opened:
            source = each.for_classes(datasets[name][0].classes)
            input_map = augmentation.input_map(spec, source.spec)
            size = source.spec.contract.size
            if size is not None and size != input_map.side_px:
                log.warning(
                    f"{source.spec.name} declares images of {size} px and is shown {input_map.side_px} px"
                )
            by_frames.setdefault(input_map.frames, []).append((source, input_map))
        jobs += [
            Job(its_name, dataset, group, plan, views, top_k)
            for its_name, its in datasets.items()
            for dataset in its
            for group in by_frames.values()
        ]
    for job in jobs if mentions else ():
        _mention_earlier(job, augmentation, paths)
    return jobs


def _mention_earlier(job: Job, augmentation: Augmentation, paths: Paths) -> None:
    """Warn if a new store is about to be filled where one made with `--source-input earlier` exists."""
    spec = parse_target(job.target)
    for source, input_map in job.sources:
        earlier = replace(augmentation, source_input=EARLIER).input_map(spec, source.spec)
        if earlier == input_map:
            continue
        with mute_remarks():
            current = destination(job, source, input_map, paths.cache_dir)
            earlier_store = destination(job, source, earlier, paths.cache_dir)
        if earlier_store.exists and not current.exists:
            log.warning(
                f"{source.spec.name}: {earlier_store.path} was made before sources saw what the released "
                f"code shows them, a new store is filled; --source-input earlier goes on with that one"
            )


def _with_recorded_weights(paths: Paths, targets: Sequence[str], sources: Sequence[str]) -> Paths:
    """`paths`, completed by the weights that the targets' stores were made from, if they still exist."""
    for source in sources:
        folders = [paths.cache_dir / target_slug(name) / "train" / source_slug(source) for name in targets]
        stores = [store for folder in folders for store in sound_stores(folder)]
        paths = with_recorded_weights(source, paths, stores)
    return paths


def _open_sources(sources: Sequence[str], paths: Paths) -> list[Source]:
    """Open every distinct source once, even if it is named twice: both would fill the same store."""
    opened: dict[tuple[str, str], tuple[str, Source]] = {}
    for name, source in open_named(sources, paths).items():
        first, _ = opened.setdefault((source.spec.name, source.weights_sha256), (name, source))
        if first != name:
            log.info(f"{name} is the same source as {first}; it is computed once")
    return [source for _, source in opened.values()]
