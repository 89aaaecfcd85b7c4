"""Decide where a run's source outputs come from, stores that serve it or the live sources, and log which."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np
import torch

from cache import Location, Store, StoreMismatch, find_stores
from pipeline.data.augmentation import DEFAULT_VIEWS, EARLIER, RELEASED, Augmentation
from pipeline.data.datasets.dataset import Dataset
from pipeline.data.datasets.registry import DatasetSpec
from pipeline.data.plan import Plan
from pipeline.data.pools import Pool
from pipeline.data.render import open_renderer
from pipeline.runtime import Execution, Paths, folder_words, mute_remarks
from pipeline.source_outputs import SourceOutputs
from pipeline.source_outputs.cached import CachedOutputs
from pipeline.source_outputs.live import LiveOutputs, LiveSource
from pipeline.source_outputs.placement import choose_placement
from pipeline.source_outputs.write_through import WriteThroughOutputs
from pipeline.stores import (
    PROBE_SAMPLES,
    Candidate,
    Job,
    check_probe,
    classes_of,
    contract_in_force,
    holds,
    identity,
    matching_store,
    open_frozen,
    open_named,
    open_source_store,
    probe_pixels,
    sound_stores,
    source_plan,
    spec_on_store,
    split_folder,
    store_folder,
    stored_output,
    stores_elsewhere,
    try_source,
    with_recorded_weights,
)
from sskt.errors import RunError
from sskt.names import quoted
from sskt.sources import (
    CONVERTED,
    LOGITS_OUTPUT,
    OPTION,
    BatchStatisticsSource,
    InputMap,
    Source,
    default_batch_size,
    kind_of,
    network_of,
    output_of,
    to_told,
)

log = logging.getLogger(__name__)

LIVE_DEFAULT_SOURCES = ("places365", "imagenet")  # the paper's P+I
LABELS = ("auto", "cached", "live", "write-through")
TEACHER_BN = ("frozen", "batch-stats")


@dataclass(frozen=True, slots=True)
class DataRequest:
    """One run's target and everything that its source outputs depend on."""

    target: str  # as the user named it
    spec: DatasetSpec
    dataset: Dataset
    augmentation: Augmentation
    plan: Plan
    paths: Paths
    execution: Execution
    temperature: float  # the student's, at which a store of top-k logits is read
    n_rows: int  # samples per epoch that this process trains on
    n_forwards: int  # images that a live source would process in the whole run
    limit: int | None = None  # the --limit on samples
    source_weights: Mapping[str, str] = field(default_factory=dict)  # sha256 by source, if the run is resumed
    whole: Dataset | None = None  # `dataset` with the samples held out for validation, if any were
    needs_every_number: bool = False  # of a row: rows that hold only the largest are refused
    pools: tuple[Pool, ...] = ()  # samples without labels that are trained on beside `dataset`

    @property
    def stored(self) -> Dataset:
        """The samples that a store should hold."""
        return self.dataset if self.whole is None else self.whole

    @property
    def n_samples(self) -> int:
        """Samples of an epoch, those of the pools included."""
        return len(self.dataset) + sum(len(pool.dataset) for pool in self.pools)

    def weights_sha256(self, source: str) -> str | None:
        """sha256 of the weights that the run began with, or of the local file; None if neither is known."""
        return self.source_weights.get(source) or self.paths.weights_sha256(source)

    def fingerprint(self, store: Store, source: str) -> dict[str, Any]:
        """The fingerprint that `store` must have to serve this run; if the source's weights are not on this
        machine, the store's record of them is trusted. A resumed run keeps the weights that it began with,
        even if the file has changed since.
        """
        about = dict(store.manifest.identity["source"])
        sha256 = self.weights_sha256(source)
        if sha256 is not None:
            about["weights_sha256"] = sha256
        spec = spec_on_store(source, self.paths, store)
        about["returns"] = spec.returns if spec.returns in CONVERTED else None
        about = {name: value for name, value in about.items() if value is not None}
        input_map = self.augmentation.input_map(self.spec, spec)
        return identity(about, input_map, self.plan, self.stored, top_k=store.top_k)

    def matching(self, source: str) -> Store | None:
        """The store of `source` that serves this run; see `matching_store`."""
        cache_dir = self.paths.cache_dir
        output = output_of(source)
        in_folder = [Store.open(path) for path in find_stores(store_folder(cache_dir, self.stored, source))]
        by_name = [store for store in in_folder if stored_output(store) == output]
        elsewhere = stores_elsewhere(cache_dir, self.stored, source, self.weights_sha256(source))
        return matching_store(
            self.stored,
            source,
            [Candidate(store, self.fingerprint(store, source)) for store in by_name],
            (Candidate(store, self.fingerprint(store, source)) for store in elsewhere),
        )

    def precompute_command(self, sources: tuple[str, ...], views: int | None) -> str:
        """The command that would make the stores this run lacks."""
        own = (self.target,) if self.spec.is_own_folder else ()  # filled anyway
        return precompute_command(
            self.target,
            sources,
            paths=self.paths,
            augmentation=self.augmentation,
            limit=self.limit,
            views=views,
            unlabelled=[pool.name for pool in self.pools if pool.name not in own],
        )


def precompute_command(
    target: str,
    sources: tuple[str, ...],
    *,
    paths: Paths,
    augmentation: Augmentation,
    limit: int | None,
    views: int | None = None,
    unlabelled: Sequence[str] = (),
) -> str:
    """The command that makes the stores of `sources` for a target's training split, and for pools."""
    settings = {
        "--views": views,
        "--limit": limit,
        "--seed": augmentation.seed or None,
        "--plan": augmentation.kind,
        "--size": augmentation.side_px,
        "--source-size": augmentation.source_side_px,
        "--clip-frames": augmentation.n_frames,
        "--stride": augmentation.stride,
        "--source-frames": augmentation.source_frames,
        "--source-input": None if augmentation.source_input == RELEASED else augmentation.source_input,
    }
    words = [f"--source {quoted(name)}" for name in sources]
    for network in dict.fromkeys(map(network_of, sources)):
        if (given := paths.weights_of(network)) is not None:
            words.append(f"--weights {quoted(f'{network}={given}')}")
        if (contract := paths.contract_of(network)) is not None:
            words.append(f"{OPTION} {quoted(f'{network}={to_told(contract)}')}")
    words.append(f"--target {quoted(target)}")
    words += [f"{option} {value}" for option, value in settings.items() if value is not None]
    words += [f"--unlabelled {quoted(name)}" for name in unlabelled]
    words += folder_words(paths.data_dir, paths.cache_dir)
    return f"sskt precompute {' '.join(words)}"


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
    command = request.precompute_command(absent, views)
    if labels == "cached":
        raise RunError(
            f"{request.target}: there is no store of {', '.join(absent)} under {request.paths.cache_dir}; "
            f"run `{command}`, or use --labels live"
        )
    sources = sources or LIVE_DEFAULT_SOURCES
    why = (
        f"there is no store of {' and '.join(absent)}, so every epoch asks {len(sources)} live network(s) "
        f"about {request.n_samples:,} pictures; `{command}` would pay for them once"
    )
    return _open_live(request, sources, views, teacher_bn, why)


def stored_sources(cache_dir: Location, dataset: Dataset) -> tuple[str, ...]:
    """The sources with a whole view of logits stored for a target split, in alphabetical order, except
    students of ours: those know a task's own labels, and teach only when named.
    """
    return teaching_unnamed(store for store in stores_with_views(cache_dir, dataset) if _holds_logits(store))


def stored_teachers(cache_dir: Location, dataset: Dataset) -> tuple[str, ...]:
    """The sources with a whole view stored for a target split that know its classes, in alphabetical order.
    For a run whose folder is missing, only the number of classes is checked.
    """
    stores = [store for store in stores_with_views(cache_dir, dataset) if _holds_logits(store)]
    able = [store for store in stores if store.n_classes == len(dataset.classes)]
    return tuple(sorted({source_name(store) for store in able if _may_know(store, dataset.classes)}))


def teaching_unnamed(stores: Iterable[Store]) -> tuple[str, ...]:
    """The sources of stores that teach where none is named, in alphabetical order."""
    names = {source_name(store) for store in stores}
    return tuple(sorted(name for name in names if not kind_of(name).must_be_named))


def _holds_logits(store: Store) -> bool:
    return stored_output(store) == LOGITS_OUTPUT


def stores_with_views(cache_dir: Location, dataset: Dataset) -> list[Store]:
    """The target split's stores with at least one whole view, also while more views are being added. If none
    holds these images, stores of the same images under another name.
    """
    by_name = [Store.open(path) for path in find_stores(split_folder(cache_dir, dataset))]
    usable = [store for store in by_name if store.whole_views]
    if any(holds(store, dataset) for store in usable):
        return usable
    elsewhere = stores_elsewhere(cache_dir, dataset, None)
    return [store for store in elsewhere if store.whole_views and holds(store, dataset)] or usable


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


def source_name(store: Store) -> str:
    """The name that a store records of its source, with the output that it holds."""
    return str(store.manifest.identity["source"]["name"])


def _may_know(store: Store, classes: tuple[str, ...]) -> bool:
    """Whether a store's source has these classes; True if its classes are unknown."""
    weights = store.manifest.made_by.get("asked", {}).get("weights")
    by_weights = kind_of(source_name(store)).name_by_weights(weights) if weights else None
    known = classes_of(by_weights) if by_weights else None
    return known is None or known == classes


def _matching_stores(request: DataRequest, sources: tuple[str, ...], named: bool) -> dict[str, Store]:
    """The store of each source that has one. If the user named no sources, those whose stores have another
    size or plan are left out, with a warning, as long as others serve.
    """
    stores, others = {}, []
    for name in sources:
        try:
            store = request.matching(name)
        except StoreMismatch as no_match:
            store = _store_without_held_out(request, name)
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
            store = _store_without_held_out(request, name)
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


def _store_without_held_out(request: DataRequest, name: str) -> Store | None:
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
        with closing(open_renderer(request.stored, plan, request.execution, batch_size=1)) as renderer:
            check_probe(store, request.stored, renderer)
    views = views or min(store.n_views for store in stores.values())
    placement = choose_placement(stores, request.n_rows, request.execution.device)
    outputs = CachedOutputs(
        stores,
        request.dataset,
        views=views,
        placement=placement,
        temperature=request.temperature,
        contracts={name: contract_in_force(name, request.paths, store) for name, store in stores.items()},
    )
    log.info(f"labels: cached, {views} view(s) of {', '.join(stores)}, one at a time {placement}")
    return outputs


def _require_every_number(request: DataRequest, stores: Mapping[str, Store]) -> None:
    """Raise RunError for rows of the top k where the loss compares every number of a row."""
    for name, store in stores.items():
        if request.needs_every_number and store.top_k is not None:
            raise RunError(
                f"{store.path}: holds the top {store.top_k} of {store.n_classes} logits of {name}, and this "
                f"run's --aux-loss compares all of them; choose ce, kd or focal, or precompute with --top-k 0"
            )


def _open_live(
    request: DataRequest, sources: tuple[str, ...], views: int | None, teacher_bn: str, why: str
) -> LiveOutputs:
    execution = request.execution
    which_views = "a new view every epoch" if views is None else f"{views} view(s)"
    log.info(f"labels: live, {', '.join(sources)} in {execution.precision}, {which_views}: {why}")
    live_sources: dict[str, LiveSource] = {}
    for name in sources:
        source, input_map = _open_source(request, name)
        if teacher_bn == "frozen":
            fastest = source.nearest_batch_size(default_batch_size(execution.device))
            forward = execution.forward(request.n_forwards, fastest=fastest)
            plan = source_plan(input_map, request.plan)
            with closing(open_renderer(request.dataset, plan, execution, batch_size=1)) as renderer:
                positions = np.arange(min(PROBE_SAMPLES, len(request.dataset)))
                shown = torch.from_numpy(probe_pixels(renderer, positions))
                frozen = open_frozen(source, input_map, forward, execution, request.plan.side_px, shown=shown)
                try_source(frozen, request.dataset, renderer)
            live_sources[name] = frozen
        else:
            live_sources[name] = BatchStatisticsSource(
                source, input_map, device=execution.device, compute=execution.precision
            )
    contracts = {name: contract_in_force(name, request.paths, None) for name in sources}
    return LiveOutputs(live_sources, views=views, contracts=contracts)


def _open_write_through(request: DataRequest, sources: tuple[str, ...], views: int) -> WriteThroughOutputs:
    opened = [_open_source(request, name) for name in sources]
    job = Job(request.target, request.dataset, opened, request.plan, views)
    source_stores = {
        name: open_source_store(job, source, input_map, request.paths.cache_dir, request.execution)
        for name, (source, input_map) in zip(sources, opened, strict=True)
    }
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


def _open_source(request: DataRequest, name: str) -> tuple[Source, InputMap]:
    dataset, cache_dir = request.stored, request.paths.cache_dir
    stores = chain(
        sound_stores(store_folder(cache_dir, dataset, name)), stores_elsewhere(cache_dir, dataset, name)
    )
    source = open_named(name, with_recorded_weights(name, request.paths, stores))
    return source, request.augmentation.input_map(request.spec, source.spec)
