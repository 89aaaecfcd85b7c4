"""The stores that a look at a target's sources reads, in groups whose rows belong together."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cache import Store, digest
from pipeline.data import Augmentation, Dataset
from pipeline.runtime import Paths
from pipeline.source_outputs.choose import LIVE_DEFAULT_SOURCES
from pipeline.source_outputs.request import precompute_command
from pipeline.source_outputs.stored import require_no_maps, stores_with_views
from pipeline.stores import holds, holds_maps
from sskt.errors import RunError
from sskt.sources import LOGITS_OUTPUT, kind_of, parse_source

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoreGroup:
    """Stores of one plan, whose sources can teach one student together: by the source's name."""

    stores: Mapping[str, Store]

    @property
    def views(self) -> int:
        """The views that all of them have finished."""
        return min(store.whole_views for store in self.stores.values())


def store_groups(
    target: str,
    dataset: Dataset,
    sources: Sequence[str],
    *,
    paths: Paths,
    augmentation: Augmentation,
    limit: int | None,
) -> list[StoreGroup]:
    """The target's stores with a whole view, those of one plan and source size in one group.

    `sources`: whose stores; empty for every source but students of ours, which know the labels already. The
    sizes of `augmentation` choose among stores; without, all are taken. Raises RunError, with the command
    that makes the stores, if there is none or a named source lacks one.
    """
    for name in sources:
        if kind_of(name).is_fitted:
            raise RunError(f"--source {name} is a probe itself; name the sources that it is fitted on")
    require_no_maps(sources)
    found = [store for store in stores_with_views(paths.cache_dir, dataset) if not holds_maps(store)]
    stores = [store for store in found if holds(store, dataset)]
    if len(stores) < len(found):
        log.warning(f"{len(found) - len(stores)} store(s) of other images than {target} has are left out")
    wanted = {parse_source(name).name for name in sources} or {
        name for name in map(_source_name, stores) if not kind_of(name).must_be_named
    }
    named = [store for store in stores if _source_name(store) in wanted]
    chosen = [store for store in named if _has_sizes(store, augmentation)]
    present = {_source_name(store) for store in chosen}
    absent = tuple(name for name in sources if parse_source(name).name not in present)
    if absent or not chosen:
        lacking = absent or LIVE_DEFAULT_SOURCES
        command = precompute_command(target, lacking, paths=paths, augmentation=augmentation, limit=limit)
        raise RunError(
            f"{target}: there is no store with a whole view of {' and '.join(absent) or 'any source'}"
            f"{_at_sizes(augmentation)} under {paths.cache_dir} ({_listed(stores)}); run `{command}`"
        )
    return _grouped(_distinct(chosen))


def parts_of(store: Store) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """A store's source, input map and plan, as recorded."""
    identity = store.manifest.identity
    return identity["source"], identity["input"], identity["plan"]


def holds_logits(store: Store) -> bool:
    """Whether its rows are logits of classes, and not another output."""
    return bool(parts_of(store)[0].get("output", LOGITS_OUTPUT) == LOGITS_OUTPUT)


def _source_name(store: Store) -> str:
    return str(parts_of(store)[0]["name"])


def _has_sizes(store: Store, augmentation: Augmentation) -> bool:
    """Whether a store is of the sizes that were asked for, if any were."""
    _, shown, plan = parts_of(store)
    pairs = ((augmentation.side_px, plan["side_px"]), (augmentation.source_side_px, shown["side_px"]))
    return all(asked is None or asked == stored for asked, stored in pairs)


def _at_sizes(augmentation: Augmentation) -> str:
    sizes = (("--size", augmentation.side_px), ("--source-size", augmentation.source_side_px))
    given = [f"{option} {size}" for option, size in sizes if size is not None]
    return f" with {' '.join(given)}" if given else ""


def _listed(stores: Sequence[Store]) -> str:
    """The stores that there are, for a message."""
    if not stores:
        return "none of this target's images is there"
    names = {
        f"{_source_name(store)} of {parts_of(store)[2]['side_px']}/{parts_of(store)[1]['side_px']} px"
        for store in stores
    }
    return f"there are {', '.join(sorted(names))}"


def _distinct(stores: Iterable[Store]) -> list[Store]:
    """Of stores of the same rows in several forms, the one with the most logits and views."""
    best: dict[str, Store] = {}
    for store in stores:
        source, shown, plan = parts_of(store)
        key = digest({"source": source, "input": shown, "plan": plan})
        if key not in best or _wealth(store) > _wealth(best[key]):
            best[key] = store
    return list(best.values())


def _wealth(store: Store) -> tuple[int, int]:
    return store.top_k or store.n_classes, store.whole_views


def _grouped(stores: list[Store]) -> list[StoreGroup]:
    """By plan, and by source size if a plan has a source in several sizes; a source that is still there twice
    (say, with other weights) goes into a group of its own.
    """
    plans = {id(store): digest(parts_of(store)[2]) for store in stores}
    per_plan = Counter((plans[id(store)], _source_name(store)) for store in stores)
    several = {plan for (plan, _), n in per_plan.items() if n > 1}
    groups: dict[tuple[str, int | None], list[dict[str, Store]]] = {}
    for store in sorted(stores, key=lambda store: (_source_name(store), str(store.path))):
        plan = plans[id(store)]
        side = parts_of(store)[1]["side_px"] if plan in several else None
        lists = groups.setdefault((plan, side), [])
        free = next((group for group in lists if _source_name(store) not in group), None)
        if free is None:
            lists.append(free := {})
        free[_source_name(store)] = store
    return [StoreGroup(group) for lists in groups.values() for group in lists]
