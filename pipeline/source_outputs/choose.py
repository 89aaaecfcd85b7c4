"""Decide where a run's source logits come from: stores that serve it, or the live sources, and say so in one
line.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch

from cache import Location, Store, StoreMismatch, find_stores
from pipeline.data.augmentation import DEFAULT_VIEWS, EARLIER, RELEASED, Augmentation
from pipeline.data.datasets.dataset import Dataset
from pipeline.data.datasets.registry import DatasetSpec
from pipeline.data.plan import Plan
from pipeline.data.render import open_renderer
from pipeline.runtime import Execution, Paths, folder_words, unsaid
from pipeline.source_outputs import SourceOutputs
from pipeline.source_outputs.cached import CachedOutputs
from pipeline.source_outputs.live import LiveOutputs, Teacher
from pipeline.source_outputs.placement import choose_placement
from pipeline.source_outputs.write_through import WriteThroughOutputs
from pipeline.stores import (
    PROBE_SAMPLES,
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
    seen_by,
    sound_stores,
    spec_on_store,
    split_folder,
    store_folder,
    stores_elsewhere,
    try_source,
    with_recorded_weights,
)
from sskt.errors import RunError
from sskt.names import quoted
from sskt.sources import (
    CONVERTED,
    OPTION,
    BatchStatisticsSource,
    InputMap,
    Source,
    default_batch_size,
    kind_of,
    to_told,
)

log = logging.getLogger(__name__)

LIVE_DEFAULT_SOURCES = ("places365", "imagenet")  # the paper's P+I
LABELS = ("auto", "cached", "live", "write-through")
TEACHER_BN = ("frozen", "batch-stats")


@dataclass(frozen=True, slots=True)
class DataRequest:
    """One run's target and everything that its source logits depend on."""

    target: str  # as the user named it
    spec: DatasetSpec
    dataset: Dataset
    augmentation: Augmentation
    plan: Plan
    paths: Paths
    execution: Execution
    temperature: float  # at which the student learns: what a store of top-k logits is read for
    n_rows: int  # samples of an epoch that this process trains on
    n_forwards: int  # pictures that a live source would be asked about in the whole run
    limit: int | None = None  # of samples, as asked
    source_weights: Mapping[str, str] = field(default_factory=dict)  # sha256, where a run has begun with them
    whole: Dataset | None = None  # `index` with what was held out of it to choose by, if anything was

    @property
    def stored(self) -> Dataset:
        """The samples that a store should hold."""
        return self.dataset if self.whole is None else self.whole

    def weights_sha256(self, source: str) -> str | None:
        """Of the weights that a run has begun with, or that are here; None if neither is known."""
        return self.source_weights.get(source) or self.paths.weights_sha256(source)

    def fingerprint(self, store: Store, source: str) -> dict[str, Any]:
        """What `store` must say to serve this run; the weights of a source that is not here are taken on its
        word. A run that goes on has those that it began with, whatever lies in their place by now.
        """
        stored = store.manifest.identity
        sha256 = self.weights_sha256(source)
        here = stored["source"] if sha256 is None else {**stored["source"], "weights_sha256": sha256}
        spec = spec_on_store(source, self.paths, store)
        here = {**here, "returns": spec.returns if spec.returns in CONVERTED else None}
        here = {name: value for name, value in here.items() if value is not None}
        input_map = self.augmentation.input_map(self.spec, spec)
        return identity(here, input_map, self.plan, self.stored, top_k=store.top_k)

    def matching(self, source: str) -> Store | None:
        """The store of `source` that serves this run; see `matching_store`."""
        return matching_store(
            self.paths.cache_dir,
            self.stored,
            source,
            partial(self.fingerprint, source=source),
            weights_sha256=self.weights_sha256(source),
        )

    def precompute_command(self, sources: tuple[str, ...], views: int | None) -> str:
        """The command that would make the stores this run lacks."""
        chosen = self.augmentation
        settings = {
            "--views": views,
            "--limit": self.limit,
            "--seed": chosen.seed or None,
            "--plan": chosen.kind,
            "--size": chosen.side_px,
            "--source-size": chosen.source_side_px,
            "--clip-frames": chosen.n_frames,
            "--stride": chosen.stride,
            "--source-frames": chosen.source_frames,
            "--source-input": None if chosen.source_input == RELEASED else chosen.source_input,
        }
        words = [f"--source {quoted(name)}" for name in sources]
        given = self.paths.weights
        words += [f"--weights {quoted(f'{name}={given[name]}')}" for name in sources if name in given]
        for name in sources:
            if (told := self.paths.told(name)) is not None:
                words.append(f"{OPTION} {quoted(f'{name}={to_told(told)}')}")
        words.append(f"--target {quoted(self.target)}")
        words += [f"{option} {value}" for option, value in settings.items() if value is not None]
        words += folder_words(self.paths.data_dir, self.paths.cache_dir)
        return f"sskt precompute {' '.join(words)}"


def open_source_outputs(
    request: DataRequest, sources: tuple[str, ...], *, labels: str, views: int | None, teacher_bn: str
) -> SourceOutputs:
    """Labels for a run: `labels` is one of LABELS; auto is cached if every source has a store that serves the
    run, else live.

    Without `sources`, `stored_sources` are taken, and with none of them the paper's two. Which it is is said
    in one line. Raises StoreMismatch, StoreIncomplete, RunError or SourceError, never silently changing what
    was asked for.
    """
    if teacher_bn != "frozen" and labels != "live":
        raise RunError(
            f"--teacher-bn {teacher_bn} makes a row depend on its batch, so it cannot be stored; "
            f"add --labels live, or leave it out"
        )
    if labels == "live":
        return _live(request, sources or LIVE_DEFAULT_SOURCES, views, teacher_bn, "as asked")
    if labels == "write-through":
        return _write_through(request, sources or LIVE_DEFAULT_SOURCES, views or DEFAULT_VIEWS)
    named = bool(sources)
    sources = sources or stored_sources(request.paths.cache_dir, request.dataset)
    stores = _matching_stores(request, sources, named)
    if not named and stores:
        sources = tuple(stores)
    if stores and views is None and not named:
        views = _whole_views(stores)
    absent = tuple(name for name in sources or LIVE_DEFAULT_SOURCES if name not in stores)
    if not absent:
        return _cached(request, stores, views)
    command = request.precompute_command(absent, views)
    if labels == "cached":
        raise RunError(
            f"{request.target}: there is no store of {', '.join(absent)} under {request.paths.cache_dir}; "
            f"run `{command}`, or use --labels live"
        )
    sources = sources or LIVE_DEFAULT_SOURCES
    why = (
        f"there is no store of {' and '.join(absent)}, so every epoch asks {len(sources)} live network(s) "
        f"about {len(request.dataset):,} pictures; `{command}` would pay for them once"
    )
    return _live(request, sources, views, teacher_bn, why)


def stored_sources(cache_dir: Location, dataset: Dataset) -> tuple[str, ...]:
    """The sources that have a whole view stored for a target split, in alphabetical order, but for students
    of ours: what they know is a task's own labels, and they teach when they are named.
    """
    names = {_source_name(store) for store in _begun_stores(cache_dir, dataset)}
    return tuple(sorted(name for name in names if not kind_of(name).must_be_named))


def stored_teachers(cache_dir: Location, dataset: Dataset) -> tuple[str, ...]:
    """The sources that have a whole view stored for a target split and know its classes, in alphabetical
    order; of a run that is not at hand only their number is known.
    """
    stores = [s for s in _begun_stores(cache_dir, dataset) if s.n_classes == len(dataset.classes)]
    return tuple(sorted({_source_name(store) for store in stores if _knows(store, dataset.classes)}))


def _begun_stores(cache_dir: Location, dataset: Dataset) -> list[Store]:
    """Those with a whole view: one that is being extended serves with the views that it has. Where none is of
    these images, those of the same images under another name.
    """
    here = [Store.open(path) for path in find_stores(split_folder(cache_dir, dataset))]
    begun = [store for store in here if store.whole_views]
    if any(holds(store, dataset) for store in begun):
        return begun
    elsewhere = stores_elsewhere(cache_dir, dataset, None)
    return [store for store in elsewhere if store.whole_views and holds(store, dataset)] or begun


def _whole_views(stores: dict[str, Store]) -> int:
    """How many views all of them have finished; what is left out is said."""
    whole = {name: store.whole_views for name, store in stores.items()}
    for name, store in stores.items():
        if whole[name] < store.n_views:
            log.warning(
                f"{name}: {whole[name]} of {store.n_views} view(s) are finished and no others are used; "
                f"precompute goes on with the rest"
            )
    return min(whole.values())


def _source_name(store: Store) -> str:
    return str(store.manifest.identity["source"]["name"])


def _knows(store: Store, classes: tuple[str, ...]) -> bool:
    """Whether a store's source has these classes, as far as that is known."""
    weights = store.manifest.made_by.get("asked", {}).get("weights")
    by_weights = kind_of(_source_name(store)).name_by_weights(weights) if weights else None
    known = classes_of(by_weights) if by_weights else None
    return known is None or known == classes


def _matching_stores(request: DataRequest, sources: tuple[str, ...], named: bool) -> dict[str, Store]:
    """The store of each source that has one. Where the user has named no sources, those whose stores are of
    other sizes or plans are left out, and that is said, if others serve.
    """
    found, others = {}, []
    for name in sources:
        try:
            store = request.matching(name)
        except StoreMismatch as found_others:
            store = _without_held_out(request, name)
            if store is not None:
                found[name] = store
                continue
            mismatch = _with_remedy(found_others, request, name)
            fields = {difference.field.partition(".")[0] for difference in mismatch.differences}
            if named or not fields or not fields <= {"plan", "input"}:
                raise mismatch from None
            others.append((name, mismatch))
            continue
        if store is None:  # not even one that differs; one of the same rows under another name may be there
            store = _without_held_out(request, name)
        if store is not None:
            found[name] = store
    if others and not found:
        raise others[0][1]
    for name, why in others:
        log.warning(f"{name} is left out, its logits are of other pictures: {why}")
    return found


def _with_remedy(mismatch: StoreMismatch, request: DataRequest, source: str) -> StoreMismatch:
    """The same, with what would help where the stores differ by the way in which sources see pictures now."""
    earlier = replace(request, augmentation=replace(request.augmentation, source_input=EARLIER))
    try:
        with unsaid():
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


def _without_held_out(request: DataRequest, name: str) -> Store | None:
    """The store that a run filled with just the samples that this one is trained on, if there is one."""
    try:
        store = replace(request, whole=None).matching(name)
    except StoreMismatch:
        return None
    return store if store is not None and store.n_samples == len(request.dataset) else None


def _cached(request: DataRequest, stores: dict[str, Store], views: int | None) -> CachedOutputs:
    for store in stores.values():
        seen = seen_by(InputMap.from_dict(store.manifest.identity["input"]), request.plan)
        with closing(open_renderer(request.stored, seen, request.execution, batch_size=1)) as renderer:
            check_probe(store, request.stored, renderer)
    views = views or min(store.n_views for store in stores.values())
    residence = choose_placement(stores, request.n_rows, request.execution.device)
    labels = CachedOutputs(
        stores,
        request.dataset,
        views=views,
        residence=residence,
        temperature=request.temperature,
        contracts={name: contract_in_force(name, request.paths, store) for name, store in stores.items()},
    )
    log.info(f"labels: cached, {views} view(s) of {', '.join(stores)}, one at a time {residence}")
    return labels


def _live(
    request: DataRequest, sources: tuple[str, ...], views: int | None, teacher_bn: str, why: str
) -> LiveOutputs:
    execution = request.execution
    drawn = "a new view every epoch" if views is None else f"{views} view(s)"
    log.info(f"labels: live, {', '.join(sources)} in {execution.precision}, {drawn}: {why}")
    teachers: dict[str, Teacher] = {}
    for name in sources:
        source, input_map = _opened(request, name)
        if teacher_bn == "frozen":
            fastest = source.nearest_batch_size(default_batch_size(execution.device))
            forward = execution.forward(request.n_forwards, fastest=fastest)
            with closing(
                open_renderer(request.dataset, seen_by(input_map, request.plan), execution, batch_size=1)
            ) as renderer:
                shown = torch.from_numpy(
                    probe_pixels(renderer, np.arange(min(PROBE_SAMPLES, len(request.dataset))))
                )
                frozen = open_frozen(source, input_map, forward, execution, request.plan.side_px, shown=shown)
                try_source(frozen, request.dataset, renderer)
            teachers[name] = frozen
        else:
            teachers[name] = BatchStatisticsSource(
                source, input_map, device=execution.device, compute=execution.precision
            )
    contracts = {name: contract_in_force(name, request.paths, None) for name in sources}
    return LiveOutputs(teachers, views=views, contracts=contracts)


def _write_through(request: DataRequest, sources: tuple[str, ...], views: int) -> WriteThroughOutputs:
    opened = [_opened(request, name) for name in sources]
    job = Job(request.target, request.dataset, opened, request.plan, views)
    works = {
        name: open_source_store(job, source, input_map, request.paths.cache_dir, request.execution)
        for name, (source, input_map) in zip(sources, opened, strict=True)
    }
    missing = sorted({unit.view for work in works.values() for unit in work.pending})
    log.info(
        f"labels: write-through, {', '.join(sources)}: {len(missing)} of {views} view(s) will be asked for "
        f"once and kept in {', '.join(str(work.store.path) for work in works.values())}"
    )

    stores = {name: work.store for name, work in works.items()}

    def cached() -> CachedOutputs:
        for work in works.values():
            if work.remark:
                log.info(work.remark)
        return _cached(request, stores, views)

    return WriteThroughOutputs(
        works,
        request.dataset,
        views=views,
        cached=cached,
        residence=choose_placement(stores, request.n_rows, request.execution.device),
        temperature=request.temperature,
        contracts={name: contract_in_force(name, request.paths, work.store) for name, work in works.items()},
    )


def _opened(request: DataRequest, name: str) -> tuple[Source, InputMap]:
    dataset, cache_dir = request.stored, request.paths.cache_dir
    stores = chain(
        sound_stores(store_folder(cache_dir, dataset, name)), stores_elsewhere(cache_dir, dataset, name)
    )
    source = open_named(name, with_recorded_weights(name, request.paths, stores))
    return source, request.augmentation.input_map(request.spec, source.spec)
