"""A job of stage one: whose pictures, which sources, how many views, and the store that each source's logits
belong in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cache.errors import StoreDamaged
from cache.manifest import differences, digest
from cache.storage import Location, is_file
from cache.store import Store, find_stores
from pipeline.alike import sentence, sound_stores, store_folder, stores_elsewhere, unmet_by_rows
from pipeline.data.datasets.dataset import TargetIndex
from pipeline.data.plan import Plan
from pipeline.fingerprint import identity, seen_by, source_identity
from sskt.sources.input_map import InputMap
from sskt.sources.source import Source
from sskt.topk import row_width

DENSE_BUDGET = 100_000_000_000  # bytes of one store beyond which only the top classes are kept
DEFAULT_TOP_K = 64

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Job:
    """What stage one is to do for one target.

    `target` is the name that it was asked for by, which a store records beside its fingerprint. `top_k` is
    the number of classes to keep of every row, 0 for all; None takes all below DENSE_BUDGET.
    """

    target: str
    index: TargetIndex
    sources: list[tuple[Source, InputMap]]  # at least one; all look at the same frames of clips
    plan: Plan
    views: int
    top_k: int | None = None

    @property
    def seen(self) -> Plan:
        """What is drawn: as much of `plan` as the sources look at, all of them at the same."""
        return seen_by(self.sources[0][1], self.plan)

    @property
    def name(self) -> str:
        """The target and its split, for messages."""
        return f"{self.index.target}/{self.index.split}"


@dataclass(frozen=True, slots=True)
class Destination:
    """Where one source's logits belong."""

    path: Location
    fields: dict[str, Any]  # the fingerprint
    top_k: int | None  # None: all logits
    exists: bool

    @property
    def store(self) -> Store | None:
        """The store, if it is there."""
        return Store.open(self.path) if self.exists else None


def destination(job: Job, source: Source, input_map: InputMap, cache_dir: Location, say: Say) -> Destination:
    """The store for a source: what `job.top_k` asks for; if it asks for nothing, the one that is there. A
    store of the same rows under another name is as good, and that is said.
    """
    spec = source.spec
    about = source_identity(spec, source.weights_sha256, spec.n_classes)
    folder = store_folder(cache_dir, job.index, spec.name)

    def of_form(top_k: int | None) -> Destination:
        fields = identity(about, input_map, job.plan, job.index, top_k=top_k)
        path = folder / f"{digest(fields)[:12]}.zarr"
        return Destination(path, fields, top_k, is_file(path / "zarr.json"))

    def or_alike(place: Destination) -> Destination:
        return place if place.exists else _alike(place, job, source, cache_dir, say) or place

    dense, wanted = of_form(None), job.top_k
    if wanted is None:
        nbytes = 2 * spec.n_classes * len(job.index) * job.views
        if dense.exists:
            return dense
        if there := [place for k in _top_ks_in(folder, say) if (place := of_form(k)).exists]:
            largest = max(there, key=lambda place: place.top_k or 0)
            say(
                f"{spec.name}: {largest.path} is there and holds the top {largest.top_k}; --top-k 0 keeps all"
            )
            return largest
        if (alike := or_alike(dense)).exists:
            return alike
        if nbytes <= DENSE_BUDGET:
            return dense
        say(
            f"{spec.name}: all {spec.n_classes} logits of {job.views} view(s) would take "
            f"{nbytes / 1e9:,.0f} GB, the top {DEFAULT_TOP_K} are kept; --top-k 0 keeps all"
        )
        wanted = DEFAULT_TOP_K
    if wanted == 0:
        return or_alike(dense)
    if row_width(wanted) >= spec.n_classes:
        say(f"{spec.name}: all {spec.n_classes} logits are kept, the top {wanted} would take no less")
        return or_alike(dense)
    return or_alike(of_form(wanted))


def _alike(place: Destination, job: Job, source: Source, cache_dir: Location, say: Say) -> Destination | None:
    """A store of the very rows that belong in `place`, under another name; None if there is none."""
    index, name = job.index, source.spec.name
    here = sound_stores(store_folder(cache_dir, index, name))
    others = stores_elsewhere(cache_dir, index, name, source.weights_sha256)
    alike = [
        store
        for store in (*here, *others)
        if store.n_samples == len(index)
        and not unmet_by_rows(differences(store.manifest.identity, place.fields), store, index)
    ]
    if not alike:
        return None
    chosen = max(alike, key=lambda store: store.whole_views)
    say(sentence(chosen, place.fields))
    return Destination(chosen.path, chosen.manifest.identity, place.top_k, exists=True)


def _top_ks_in(folder: Location, say: Say) -> Iterator[int]:
    """How many classes the top-k stores of a folder hold; a damaged one is passed over, and that is said."""
    for path in find_stores(folder):
        try:
            top_k = Store.open(path).top_k
        except StoreDamaged as damage:
            say(f"{damage}; it is passed over")
            continue
        if top_k is not None:
            yield top_k
