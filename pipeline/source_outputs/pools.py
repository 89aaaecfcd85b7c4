"""Open source outputs where a run has pools: the stores of each must be made as the target's were."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from cache import Store, StoreIncomplete, StoreMismatch, differences
from pipeline.data import NO_POOL, Pool
from pipeline.runtime import mute_remarks
from pipeline.source_outputs.cached import CachedOutputs
from pipeline.source_outputs.choose import LIVE_DEFAULT_SOURCES, open_cached, open_source_outputs
from pipeline.source_outputs.joined import JoinedOutputs
from pipeline.source_outputs.outputs import SourceOutputs
from pipeline.source_outputs.request import DataRequest
from sskt.errors import RunError, shown

log = logging.getLogger(__name__)


def open_outputs(
    request: DataRequest, sources: tuple[str, ...], *, labels: str, views: int | None, teacher_bn: str
) -> SourceOutputs:
    """The outputs of a run's target, and then of its pools, for the dataset that `join` makes of them; see
    `open_source_outputs`.

    Raises RunError, StoreMismatch or StoreIncomplete, with the command that helps, for a pool without a store
    of each source that was made as the target's.
    """
    if request.pools and labels == "write-through":
        raise RunError(
            f"--labels write-through fills the stores of the target alone, and this run has samples without "
            f"labels of {shown(request.pools[0].name)}; run "
            f"`{request.precompute_command(sources or LIVE_DEFAULT_SOURCES, views)}` and train with --labels "
            f"cached, or add --unlabelled {NO_POOL}"
        )
    outputs = open_source_outputs(request, sources, labels=labels, views=views, teacher_bn=teacher_bn)
    if not request.pools or not isinstance(outputs, CachedOutputs):
        return outputs  # live sources are asked about pixels, whosever they are
    pools = [_open_pool(request, pool, outputs) for pool in request.pools]
    return join_outputs(request, [outputs, *pools])


def join_outputs(request: DataRequest, parts: list[SourceOutputs]) -> SourceOutputs:
    """The outputs of the target and of every pool as one."""
    sizes = [len(request.dataset), *(len(pool.dataset) for pool in request.pools)]
    return JoinedOutputs(parts, sizes) if len(parts) > 1 else parts[0]


def pool_stores(
    request: DataRequest, pool: Pool, stores: Mapping[str, Store], views: int
) -> dict[str, Store]:
    """A pool's store of each source that the target has one of, made by the same network, input map and plan;
    raises as `open_outputs` does.
    """
    wanted = _request_of(request, pool, stores)
    name, command = shown(pool.name), request.precompute_command(tuple(stores), views)
    found: dict[str, Store] = {}
    for source, store in stores.items():
        try:
            mine = wanted.matching(source)
        except StoreMismatch as mismatch:
            raise StoreMismatch(
                f"--unlabelled {name}: {mismatch}; run `{command}`", mismatch.differences
            ) from None
        if mine is None:
            or_none = (
                f", or leave them out with --unlabelled {NO_POOL}" if pool.name == request.target else ""
            )
            raise RunError(
                f"--unlabelled {name}: there is no store of {source} for its {len(pool.dataset):,} samples "
                f"without labels under {request.paths.cache_dir}; run `{command}`{or_none}"
            )
        if unlike := differences(_made_by(mine), _made_by(store)):
            first = unlike[0]
            raise StoreMismatch(
                f"--unlabelled {name}: {mine.path}: {first.field} is {first.stored}, the target's store "
                f"{store.path} has {first.wanted}; run `{command}`",
                tuple(unlike),
            )
        if mine.whole_views < views:
            raise StoreIncomplete(
                f"--unlabelled {name}: {mine.path}: {mine.whole_views} view(s) are finished, this run needs "
                f"{views} of {source}; run `{command}`, or ask for fewer --views"
            )
        found[source] = mine
    return found


def _open_pool(request: DataRequest, pool: Pool, outputs: CachedOutputs) -> CachedOutputs:
    """A pool's stored outputs, of the sources and views that the target's are of."""
    stores = pool_stores(request, pool, outputs.stores, outputs.views)
    with mute_remarks():
        opened = open_cached(_request_of(request, pool, outputs.stores), stores, outputs.views)
    log.info(f"labels: cached, {len(pool.dataset):,} samples without labels of {shown(pool.name)} as well")
    return opened


def _request_of(request: DataRequest, pool: Pool, stores: Mapping[str, Store]) -> DataRequest:
    """What is asked of a pool: the target's plan and input map, and the networks behind its `stores`."""
    weights = {
        name: str(store.manifest.identity["source"]["weights_sha256"]) for name, store in stores.items()
    }
    return replace(
        request,
        target=pool.name,
        dataset=pool.dataset,
        whole=None,
        limit=None,
        n_rows=len(pool.dataset),
        source_weights=weights,
        pools=(),
        classes=request.class_names,
    )


def _made_by(store: Store) -> dict[str, object]:
    """What a store's rows are made by, names aside."""
    identity = store.manifest.identity
    source = {key: value for key, value in identity["source"].items() if key != "name"}
    return {"source": source, "input": identity["input"], "plan": identity["plan"]}
