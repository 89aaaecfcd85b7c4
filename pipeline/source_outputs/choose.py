"""Decide where a run's source outputs come from, stores that serve it or the live sources, and log which."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from itertools import chain

import torch

from cache import Store, StoreMismatch
from pipeline.data import DEFAULT_VIEWS, EARLIER, Plan, open_renderer
from pipeline.runtime import mute_remarks
from pipeline.source_outputs.cached import CachedOutputs
from pipeline.source_outputs.live import LiveOutputs
from pipeline.source_outputs.outputs import SourceOutputs
from pipeline.source_outputs.placement import choose_placement
from pipeline.source_outputs.request import DataRequest
from pipeline.source_outputs.shared_reading import SharedReading
from pipeline.source_outputs.stored import stored_sources
from pipeline.source_outputs.write_through import WriteThroughOutputs
from pipeline.stores import (
    PROBE_SAMPLES,
    Job,
    SourceStore,
    check_probe,
    contract_in_force,
    open_frozen,
    open_named,
    open_source_stores,
    probe_pixels,
    sound_stores,
    source_plan,
    step_batch_size,
    store_folder,
    stores_elsewhere,
    try_source,
    with_recorded_weights,
)
from sskt.errors import RunError
from sskt.sources import (
    BatchStatisticsSource,
    FrozenSource,
    InputMap,
    Source,
    network_of,
)

log = logging.getLogger(__name__)

LIVE_DEFAULT_SOURCES = ("places365", "imagenet")  # the paper's P+I
LABELS = ("auto", "cached", "live", "write-through")


def open_source_outputs(
    request: DataRequest, sources: tuple[str, ...], *, labels: str, views: int | None, teacher_bn: str
) -> SourceOutputs:
    """Open a run's source outputs. `labels` is one of LABELS; auto means cached if every source has a store
    that serves the run, else live.

    `sources` defaults to `stored_sources`, or to the paper's two if nothing is stored. The choice is logged
    in one line. Raises StoreMismatch, StoreIncomplete, RunError or SourceError rather than silently changing
    what the user chose.
    """
    if teacher_bn != "frozen" and labels != "live":
        raise RunError(
            f"--teacher-bn {teacher_bn} makes a row depend on its batch, so it cannot be stored; "
            f"add --labels live, or leave it out"
        )
    if labels == "live":
        return _open_live(request, sources or LIVE_DEFAULT_SOURCES, views, teacher_bn, "as asked")
    if labels == "write-through":
        return _open_write_through(request, sources or LIVE_DEFAULT_SOURCES, views or DEFAULT_VIEWS)
    named = bool(sources)
    sources = sources or stored_sources(request.paths.cache_dir, request.dataset)
    stores = _matching_stores(request, sources, named)
    if not named and stores:
        sources = tuple(stores)
    if stores and views is None and not named:
        views = _n_whole_views(stores)
    absent = tuple(name for name in sources or LIVE_DEFAULT_SOURCES if name not in stores)
    if not absent:
        return open_cached(request, stores, views)
    command, lacking = request.precompute_command(absent, views), [request.lacking(name) for name in absent]
    if labels == "cached":
        raise RunError(
            f"{request.target}: there is no store of {', '.join(lacking)} under {request.paths.cache_dir}; "
            f"run `{command}`, or use --labels live"
        )
    sources = sources or LIVE_DEFAULT_SOURCES
    n_networks = len({network_of(name) for name in sources})
    why = (
        f"there is no store of {' and '.join(lacking)}, so every epoch asks {n_networks} live network(s) "
        f"about {request.n_samples:,} pictures; `{command}` would pay for them once"
    )
    return _open_live(request, sources, views, teacher_bn, why)


def _n_whole_views(stores: dict[str, Store]) -> int:
    """The number of views that all stores have finished; warns about views that are left out."""
    whole = {name: store.whole_views for name, store in stores.items()}
    for name, store in stores.items():
        if whole[name] < store.n_views:
            log.warning(
                f"{name}: {whole[name]} of {store.n_views} view(s) are finished and no others are used; "
                f"precompute goes on with the rest"
            )
    return min(whole.values())


def _matching_stores(request: DataRequest, sources: tuple[str, ...], named: bool) -> dict[str, Store]:
    """The store of each source that has one. If the user named no sources, those whose stores have another
    size or plan are left out, with a warning, as long as others serve.
    """
    stores, others = {}, []
    for name in sources:
        try:
            store = request.matching(name)
        except StoreMismatch as no_match:
            store = store_without_held_out(request, name)
            if store is not None:
                stores[name] = store
                continue
            mismatch = _add_remedy(no_match, request, name)
            fields = {difference.field.partition(".")[0] for difference in mismatch.differences}
            if named or not fields or not fields <= {"plan", "input"}:
                raise mismatch from None
            others.append((name, mismatch))
            continue
        if store is None:  # no store of this name; the same rows may be stored under another
            store = store_without_held_out(request, name)
        if store is not None:
            stores[name] = store
    if others and not stores:
        raise others[0][1]
    for name, why in others:
        log.warning(f"{name} is left out, its logits are of other pictures: {why}")
    return stores


def _add_remedy(mismatch: StoreMismatch, request: DataRequest, source: str) -> StoreMismatch:
    """Add a remedy to the message if a store made with `--source-input earlier` would serve."""
    earlier = replace(request, augmentation=replace(request.augmentation, source_input=EARLIER))
    try:
        with mute_remarks():
            serving = earlier.matching(source)
    except StoreMismatch:
        serving = None
    if serving is None:
        return mismatch
    return StoreMismatch(
        f"{mismatch}; {serving.path} was made before sources saw what the released code shows them: add "
        f"--source-input earlier to go on with it, or precompute again",
        mismatch.differences,
    )


def store_without_held_out(request: DataRequest, name: str) -> Store | None:
    """A store that holds exactly the samples that this run trains on, without the held-out ones, if any."""
    try:
        store = replace(request, whole=None).matching(name)
    except StoreMismatch:
        return None
    return store if store is not None and store.n_samples == len(request.dataset) else None


def open_cached(request: DataRequest, stores: dict[str, Store], views: int | None) -> CachedOutputs:
    """Read from `stores`, after a look at the pixels that their sources saw."""
    _require_every_number(request, stores)
    for store in stores.values():
        plan = source_plan(InputMap.from_dict(store.manifest.identity["input"]), request.plan)
        drawing = request.execution.for_single_images
        with closing(open_renderer(request.stored, plan, drawing, batch_size=1)) as renderer:
            check_probe(store, request.stored, renderer)
    views = views or min(store.n_views for store in stores.values())
    placement = choose_placement(stores, request.n_rows, request.execution.device)
    world = request.world
    # with pools, a rank may have no row of one; what is mapped is shared by the ranks of a machine anyway
    alone = not world.is_joined or request.pools or request.classes is not None
    shares = not alone and "map" not in world.all_gather(placement.kind)
    outputs = CachedOutputs(
        stores,
        request.dataset,
        views=views,
        placement=placement,
        temperature=request.temperature,
        contracts={name: contract_in_force(name, request.paths, store) for name, store in stores.items()},
        read=SharedReading(world).rows if shares else Store.rows,
    )
    log.info(f"labels: cached, {views} view(s) of {', '.join(stores)}, one at a time {placement}")
    return outputs


def _require_every_number(request: DataRequest, stores: Mapping[str, Store]) -> None:
    """Raise RunError for rows of the top k where the loss compares every number of a row."""
    for name, store in stores.items():
        if request.needs_every_number and store.top_k is not None:
            raise RunError(
                f"{store.path}: holds the top {store.top_k} of {store.n_classes} logits of {name}, and "
                f"{request.needs_every_number} compares all of them; precompute with --top-k 0, or choose "
                f"another"
            )


def _open_live(
    request: DataRequest, sources: tuple[str, ...], views: int | None, teacher_bn: str, why: str
) -> LiveOutputs:
    execution = request.execution
    which_views = "a new view every epoch" if views is None else f"{views} view(s)"
    log.info(f"labels: live, {', '.join(sources)} in {execution.precision}, {which_views}: {why}")
    opened = _open_sources(request, sources)
    live_sources: dict[str, FrozenSource | BatchStatisticsSource] = {}
    if teacher_bn == "frozen":
        by_network: dict[tuple[int, InputMap], list[str]] = {}
        for name, (source, input_map) in opened.items():
            by_network.setdefault((id(source.network or source), input_map), []).append(name)
        for names in by_network.values():
            frozen = _open_network(request, [opened[name] for name in names])
            live_sources |= dict.fromkeys(names, frozen)
    else:
        live_sources |= {
            name: BatchStatisticsSource(
                source, input_map, device=execution.device, compute=execution.precision
            )
            for name, (source, input_map) in opened.items()
        }
    contracts = {name: contract_in_force(name, request.paths, None) for name in sources}
    return LiveOutputs(live_sources, views=views, contracts=contracts)


def _open_network(request: DataRequest, outputs: list[tuple[Source, InputMap]]) -> FrozenSource:
    """What computes some outputs of one network by one forward, tried on images of the target."""
    execution, image_px = request.execution, request.plan.side_px
    source, input_map = outputs[0]
    fastest = step_batch_size(source, input_map, execution, request.n_step)
    forward = execution.forward(request.n_forwards, fastest=fastest)
    if len(outputs) > 1:
        forward = replace(forward, outputs=tuple(each.spec.output for each, _ in outputs))
    plan = source_plan(input_map, request.plan)
    drawing = execution.for_single_images
    with closing(open_renderer(request.dataset, plan, drawing, batch_size=1)) as renderer:
        positions = range(min(PROBE_SAMPLES, len(request.dataset)))
        shown = torch.from_numpy(probe_pixels(renderer, positions))
        frozen = open_frozen(source, input_map, forward, execution, image_px, shown=shown)
        try_source(frozen, request.dataset, renderer)
    return frozen


def _open_write_through(request: DataRequest, sources: tuple[str, ...], views: int) -> WriteThroughOutputs:
    opened = _open_sources(request, sources)
    by_plan: dict[Plan, list[str]] = {}  # the sources of a job see the same frames of clips
    for name, (_, input_map) in opened.items():
        by_plan.setdefault(source_plan(input_map, request.plan), []).append(name)
    filled: dict[str, SourceStore] = {}
    for names in by_plan.values():
        job = Job(request.target, request.dataset, [opened[name] for name in names], request.plan, views)
        its = open_source_stores(job, request.paths.cache_dir, request.execution, n_step=request.n_step)
        filled |= dict(zip(names, its, strict=True))
    source_stores = {name: filled[name] for name in opened}
    stores = {name: each.store for name, each in source_stores.items()}
    _require_every_number(request, stores)
    missing = sorted({unit.view for each in source_stores.values() for unit in each.pending})
    log.info(
        f"labels: write-through, {', '.join(sources)}: {len(missing)} of {views} view(s) will be asked for "
        f"once and kept in {', '.join(str(store.path) for store in stores.values())}"
    )

    def open_filled() -> CachedOutputs:
        for each in source_stores.values():
            if each.remark:
                log.info(each.remark)
        return open_cached(request, stores, views)

    return WriteThroughOutputs(
        source_stores,
        request.dataset,
        views=views,
        open_cached=open_filled,
        placement=choose_placement(stores, request.n_rows, request.execution.device),
        temperature=request.temperature,
        contracts={name: contract_in_force(name, request.paths, store) for name, store in stores.items()},
    )


def _open_sources(request: DataRequest, names: tuple[str, ...]) -> dict[str, tuple[Source, InputMap]]:
    """The sources by name, each network opened once, with their input maps."""
    dataset, cache_dir, paths = request.stored, request.paths.cache_dir, request.paths
    for name in names:
        stores = chain(
            sound_stores(store_folder(cache_dir, dataset, name)), stores_elsewhere(cache_dir, dataset, name)
        )
        paths = with_recorded_weights(name, paths, stores)
    opened = {
        name: source.for_classes(request.class_names) for name, source in open_named(names, paths).items()
    }
    return {
        name: (source, request.augmentation.input_map(request.spec, source.spec))
        for name, source in opened.items()
    }
