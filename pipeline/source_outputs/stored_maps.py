"""Which stores teach a run of graph distillation that names no source, where it compares maps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from cache import Location, Store
from pipeline.data import Dataset
from pipeline.source_outputs.stored import may_know, source_name, stored_teachers, stores_with_views
from pipeline.stores import holds_maps, stored_output
from sskt.errors import RunError, quoted
from sskt.sources import at_output, kind_of, network_of


def stored_graph_sources(cache_dir: Location, dataset: Dataset, *, logits: bool) -> tuple[str, ...]:
    """The teachers with stored maps, in alphabetical order, by the names of those maps; where `logits` are
    compared too, first by the names of their logits.

    Raises RunError, which names what is there, unless every teacher has all that is compared, maps of one
    layer and grid in common and no other, and a network of its own among the paper's four.
    """
    stores = [
        store
        for store in stores_with_views(cache_dir, dataset)
        if _is_teachers_map(store) and may_know(store, dataset.classes)
    ]
    maps = defaultdict[str, set[str]](set)
    for store in stores:
        maps[network_of(source_name(store))].add(stored_output(store))
    teachers = stored_teachers(cache_dir, dataset) if logits else tuple(sorted(maps))
    if not maps:
        raise RunError(
            f"--graph-features compares maps, and none of teachers of {dataset.target} are stored under "
            f"{cache_dir}; run sskt precompute --output logits --output layer4 --source run:FOLDER for each "
            f"teacher, or add --source NAME@layer4 of each with --labels live"
        )
    if lacking := [name for name in teachers if name not in maps]:
        raise RunError(
            f"{lacking[0]} has stored logits and no maps, and {_listed(maps)} have maps; run sskt precompute "
            f"--source {quoted(at_output(lacking[0], 'layer4'))}, or name the sources with --source"
        )
    if lacking := [name for name in sorted(maps) if name not in teachers]:
        raise RunError(
            f"{lacking[0]} has stored maps and no logits of the target's classes; run sskt precompute "
            f"--source {quoted(lacking[0])}, or name the sources with --source"
        )
    _require_one_of_each(stores)
    output = _common_output({name: maps[name] for name in teachers})
    return (*(teachers if logits else ()), *(at_output(name, output) for name in teachers))


def _is_teachers_map(store: Store) -> bool:
    """Whether a store holds maps of a student of ours: other networks know no classes of the target."""
    return holds_maps(store) and kind_of(source_name(store)).must_be_named


def _common_output(maps: dict[str, set[str]]) -> str:
    """The one layer and grid that all teachers have maps of."""
    common = set.intersection(*maps.values())
    if len(common) == 1:
        return common.pop()
    each = "; ".join(f"{name} has {' and '.join(sorted(outputs))}" for name, outputs in maps.items())
    if not common:
        raise RunError(
            f"the stored maps are of no common layer and grid ({each}); precompute one of all teachers, or "
            f"name the sources with --source"
        )
    raise RunError(
        f"maps of {' and '.join(sorted(common))} are stored of every teacher; name one with "
        f"--source {next(iter(maps))}@{min(common)} and so on"
    )


def _require_one_of_each(stores: Iterable[Store]) -> None:
    """Raise RunError for two teachers with the same one of the paper's networks, such as runs of two
    seeds.
    """
    by_network = defaultdict[str, set[str]](set)
    for store in stores:
        architecture = str(store.manifest.identity["source"]["architecture"])
        if architecture.removesuffix("-small") == "prednet" or architecture.startswith("vgg19-"):
            by_network[architecture].add(network_of(source_name(store)))
    for architecture, names in by_network.items():
        if len(names) > 1:
            raise RunError(
                f"{_listed(names)} are all {architecture}, expected one teacher of each network; name the "
                f"sources with --source"
            )


def _listed(names: Iterable[str]) -> str:
    return " and ".join(sorted(names))
