"""Open a run's source outputs where a probe is among its sources."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import torch

from cache import Store, StoreMismatch
from pipeline.data import Dataset, join
from pipeline.runtime import World
from pipeline.source_outputs.cached import CachedOutputs, require_views
from pipeline.source_outputs.choose import LIVE_DEFAULT_SOURCES, store_without_held_out
from pipeline.source_outputs.fit_probe import PROBE_VIEWS, RunProbe, StoredRows, fit_probe, inputs_of
from pipeline.source_outputs.outputs import SourceOutputs
from pipeline.source_outputs.placement import choose_placement
from pipeline.source_outputs.pools import open_outputs, pool_stores
from pipeline.source_outputs.probed import ProbedOutputs, mean_table
from pipeline.source_outputs.request import DataRequest
from pipeline.source_outputs.stored import require_no_maps, stores_with_views, teaching_unnamed
from sskt.errors import RunError, SettingError
from sskt.sources import LOGITS_OUTPUT, MAP, asked_of, kind_of, network_of, output_kind, output_of

log = logging.getLogger(__name__)


class NothingStoredError(RunError):
    """No source that a probe names has a store, or no source at all."""


def probe_among(sources: tuple[str, ...]) -> str | None:
    """The probe among a run's sources. Raises RunError for more than one, and for one of maps."""
    probes = [name for name in sources if kind_of(name).is_fitted]
    if len(probes) > 1:
        raise RunError(f"{' and '.join(probes)}: a run has one probe; join its sources, probe:A+B")
    for asked in map(asked_of, probes):
        require_no_maps(asked)
    return probes[0] if probes else None


def open_with_probe(
    request: DataRequest,
    sources: tuple[str, ...],
    *,
    labels: str,
    views: int | None,
    teacher_bn: str,
    probe_views: str,
    fitted: RunProbe | None,
    world: World,
) -> ProbedOutputs:
    """The outputs of `sources`, a probe among them; `fitted` is the one that a run has started with. Ranks
    share the first one's probe: another processor's may differ in the last bits.

    Raises RunError for a probe whose stores are missing (NothingStoredError if all are), or are others than
    those that `fitted` was fitted on, TooFewLabelsError, and what `open_source_outputs` raises.
    """
    of_stores = labels in ("auto", "cached")
    _require_askable(labels, probe_views, of_stores=of_stores)
    asked = probe_among(sources)
    assert asked is not None  # noqa: S101 - the caller looked
    stores = _stores_of(request, asked)
    if not of_stores and not asked_of(asked):
        raise RunError(
            f"--labels {labels} asks networks, and {asked} names none; add --source "
            f"probe:{'+'.join(stores)}, with the paths of programs and runs"
        )
    n_views = views or (fitted.inputs.views if fitted else min(s.whole_views for s in stores.values()))
    for source, store in stores.items():
        require_views(store, source, n_views)
    rows = StoredRows(stores, request.dataset, n_views, request.temperature)
    probe = _fit(f"probe:{'+'.join(stores)}", rows, probe_views, fitted)
    if world.size > 1:
        probe = RunProbe.from_bytes(world.broadcast(probe.to_bytes()))
    shown = tuple(source for source in sources if source != asked)
    of_batch = shown if probe_views == "mean" else tuple(dict.fromkeys((*shown, *stores)))
    outputs: SourceOutputs = _no_outputs(request, n_views)
    if of_batch:
        outputs = open_outputs(
            request, of_batch, labels=labels, views=n_views if of_stores else views, teacher_bn=teacher_bn
        )
    dataset = join([request.dataset, *(pool.dataset for pool in request.pools)])
    table = _table(request, probe, rows, dataset) if probe_views == "mean" else None
    return ProbedOutputs(outputs, probe, dataset, shown=shown, table=table, device=request.execution.device)


def _table(request: DataRequest, probe: RunProbe, rows: StoredRows, joined: Dataset) -> torch.Tensor:
    """The probe's logits, float16 (N, C), for the mean view of the target's samples, then of the pools'."""
    parts = [rows]
    for pool in request.pools:
        stores = pool_stores(request, pool, rows.stores, rows.views)
        parts.append(replace(rows, stores=stores, dataset=pool.dataset))
    ends = np.cumsum([len(part.dataset) for part in parts])[:-1]
    folds = np.split(probe.folds_of(joined.ids), ends)
    return torch.cat([mean_table(probe, part, of) for part, of in zip(parts, folds, strict=True)])


def _require_askable(labels: str, probe_views: str, *, of_stores: bool) -> None:
    if probe_views not in PROBE_VIEWS:
        raise SettingError("probe_views", f"is {probe_views!r}, expected one of {', '.join(PROBE_VIEWS)}")
    if probe_views == "mean" and not of_stores:
        raise RunError(
            f"--probe-views mean averages stored views, and --labels {labels} asks about each view as it "
            f"comes; add --probe-views own"
        )


def _no_outputs(request: DataRequest, views: int) -> CachedOutputs:
    """Of a batch, nothing but what the probe says of its samples."""
    device = request.execution.device
    return CachedOutputs(
        {},
        request.dataset,
        views=views,
        placement=choose_placement({}, 0, device),
        temperature=request.temperature,
    )


def _stores_of(request: DataRequest, name: str) -> dict[str, Store]:
    """The store of each source of a probe; of "probe" alone, see `_stored_for_probe`."""
    sources = asked_of(name)
    if not sources and (chosen := _stored_for_probe(request)):
        return chosen
    stores = {source: store for source in sources if (store := _store_of(request, source)) is not None}
    absent = tuple(source for source in sources if source not in stores)
    if absent or not sources:
        lacking = " and ".join(absent) or "any source"
        command = request.precompute_command(absent or LIVE_DEFAULT_SOURCES, None)
        error = RunError if stores else NothingStoredError
        raise error(
            f"{name}: there is no store of {lacking} for {request.target} under {request.paths.cache_dir}, "
            f"and a probe is fitted on stored rows; run `{command}`"
        )
    return stores


def _store_of(request: DataRequest, source: str) -> Store | None:
    """The store of `source` that serves this run, or one of exactly the samples that it trains on. Raises
    StoreMismatch.
    """
    try:
        store = request.matching(source)
    except StoreMismatch:
        store = store_without_held_out(request, source)
        if store is None:
            raise
    return store or store_without_held_out(request, source)


def _stored_for_probe(request: DataRequest) -> dict[str, Store]:
    """One output of every source that has a store for this run: its embedding, if at least as many whole
    views of it are stored as of its logits.

    Pooled features are what a network's logits are a linear map of: a probe on both would have more columns
    to weigh and nothing new to read. Maps are not for probes. Raises StoreMismatch for a source whose stores
    are all of other images, sizes or plans.
    """
    stored = teaching_unnamed(stores_with_views(request.paths.cache_dir, request.dataset))
    names = [name for name in stored if output_kind(output_of(name)) != MAP]
    chosen: dict[str, Store] = {}
    for network in dict.fromkeys(map(network_of, names)):
        serving: dict[str, Store] = {}
        mismatch = None
        for name in (each for each in names if network_of(each) == network):
            try:
                store = _store_of(request, name)
            except StoreMismatch as error:
                mismatch = error
                continue
            if store is not None:
                serving[name] = store
        if mismatch is not None and not serving:
            raise mismatch
        if serving:
            best = max(
                serving, key=lambda name: (serving[name].whole_views, output_of(name) != LOGITS_OUTPUT)
            )
            chosen[best] = serving[best]
    return dict(sorted(chosen.items()))


def _fit(name: str, rows: StoredRows, answers: str, fitted: RunProbe | None) -> RunProbe:
    """The probe that a run has begun with, or a new one."""
    if fitted is None:
        return fit_probe(name, rows, answers=answers)
    now = inputs_of(rows, answers)
    if now.sha256 != fitted.inputs.sha256:
        before, after = fitted.inputs.to_dict(), now.to_dict()
        field = next(key for key in before if before[key] != after[key])
        raise RunError(
            f"{fitted.name} was fitted on other {_WHAT[field]} than are there now; continue the run with the "
            f"stores and labels that it started with, or start again in another folder"
        )
    return fitted


_WHAT = {
    "sources": "stores",
    "views": "numbers of views",
    "answers": "--probe-views",
    "labels_sha256": "labels",
}
