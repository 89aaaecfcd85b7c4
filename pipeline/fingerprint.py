"""What a store of logits depends on, how a matching store is found, and the check that it still fits (DESIGN
promise 5).

A store serves a run when the source, the input map f_s, the plan and the target agree field by field. A run
on a subset of a store's samples is served too: then each of its pictures must be the very one that the
store's row was made from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cache.errors import ABSENT, Difference, StoreMismatch
from cache.manifest import differences, digest, require_match
from cache.storage import Location
from cache.store import Store, find_stores
from pipeline.alike import (
    PER_SAMPLE,
    first_strange_row,
    sentence,
    store_folder,
    stores_elsewhere,
    unmet_by_rows,
)
from pipeline.data.datasets.dataset import TargetIndex
from pipeline.data.plan import CentreClip, CornerClip, OfClip, Plan
from pipeline.data.render import Renderer
from sskt.errors import RunError
from sskt.sources.contract import CONVERTED
from sskt.sources.input_map import InputMap
from sskt.sources.registry import parse_source
from sskt.sources.source import SourceSpec

PROBE_SAMPLES = 4
PROBE_TOLERANCE = 1.0  # grey levels of mean absolute difference: what two renderers may differ by

Say = Callable[[str], None]


def source_identity(spec: SourceSpec, weights_sha256: str, n_classes: int) -> dict[str, Any]:
    """The frozen network: eval mode is part of it, since batch statistics would make a row depend on its
    neighbours. What it returns is, where that is turned into logits.
    """
    converted = {"returns": spec.returns} if spec.returns in CONVERTED else {}
    return {
        "name": spec.name,
        "architecture": spec.architecture,
        "n_classes": n_classes,
        "weights_sha256": weights_sha256,
        "mode": "eval",
        **converted,
    }


def target_identity(index: TargetIndex) -> dict[str, Any]:
    """The ordered samples, their contents, and the class map."""
    return {
        "name": index.target,
        "split": index.split,
        "n_samples": len(index),
        "contents_sha256": index.content_sha256,
        "class_names_sha256": hashlib.sha256(
            "\n".join(index.classes).encode("utf-8", "surrogateescape")
        ).hexdigest(),
        "labels_sha256": hashlib.sha256(index.truth_bytes).hexdigest(),
    }


def identity(
    source: dict[str, Any], input_map: InputMap, plan: Plan, index: TargetIndex, *, top_k: int | None
) -> dict[str, Any]:
    """The whole fingerprint: nested plain data, compared field by field; `top_k` is None for all logits."""
    fields = {
        "source": source,
        "input": input_map.to_dict(),
        "plan": plan.to_dict(),
        "target": target_identity(index),
    }
    return fields if top_k is None else {**fields, "logits": {"form": "top-k", "k": top_k}}


def seen_by(input_map: InputMap, plan: Plan) -> Plan:
    """What has to be drawn of a plan for a source: its pictures as they are, of its clips some frames."""
    if input_map.frames is None:
        return plan
    if not isinstance(plan, CornerClip | CentreClip):
        raise RunError(f"{type(plan).__name__} is a plan for pictures, {input_map.frames.kind} is of clips")
    return OfClip(plan, input_map.frames.picks)


def matching_store(
    cache_dir: Location,
    index: TargetIndex,
    source_name: str,
    wanted: Callable[[Store], dict[str, Any]],
    *,
    weights_sha256: str | None,
    say: Say,
) -> Store | None:
    """The store of `source_name` that serves `index`; None if there is no store at all.

    `wanted(store)` is this run's fingerprint; it is given the store for what the run itself cannot know (the
    weights of a source that is not on this machine; `weights_sha256` is theirs, if it is known). Stores of
    the same rows under another name come after those of this name, and that is said. Of stores that serve
    with different numbers of logits it is the one with most. Raises StoreMismatch if stores exist and none
    fits, for the one that differs least, or if some fit that were made from different weights.
    """
    stores = [Store.open(path) for path in find_stores(store_folder(cache_dir, index, source_name))]
    serving = [store for store in stores if not _unmet(store, wanted(store), index)]
    if not serving:
        others = stores_elsewhere(cache_dir, index, source_name, weights_sha256)
        candidates = [*stores, *others]
        serving = [store for store in candidates if not _unmet_by_rows(store, wanted(store), index)]
    if not serving:
        if stores:
            nearest = min(stores, key=lambda store: len(_unmet(store, wanted(store), index)))
            _refuse(nearest, wanted(nearest), index)
        return None
    if len({store.manifest.identity["source"]["weights_sha256"] for store in serving}) > 1:
        raise _ambiguous(source_name, serving)
    if len({digest(_made_of(store)) for store in serving}) > 1:
        raise _of_other_contracts(source_name, serving)
    chosen = max(serving, key=lambda store: (store.top_k or store.n_classes, store.whole_views))
    named = named_by(wanted(chosen), source_name)
    if _by_name(chosen, named):
        say(sentence(chosen, named))
    return chosen


def check_probe(store: Store, index: TargetIndex, renderer: Renderer) -> None:
    """Draw the store's probe pictures again and compare them with the pixels that its sources saw.

    Raises StoreMismatch if the mean absolute difference exceeds one grey level in any picture: then this
    machine's renderer does not show the student what the sources were asked about.
    """
    positions = np.flatnonzero(np.isin(index.ids, store.probe_ids))
    if not len(positions):
        return
    drawn = probe_pixels(renderer, positions)
    rows = [int(np.flatnonzero(store.probe_ids == index.ids[p])[0]) for p in positions]
    error = (
        np.abs(drawn.astype(np.int16) - store.probe[rows].astype(np.int16))
        .reshape(len(drawn), -1)
        .mean(axis=1)
    )
    worst = int(error.argmax())
    if error[worst] > PROBE_TOLERANCE:
        raise StoreMismatch(
            f"{store.path}: the probe picture of sample {index.ids[positions[worst]]} was rendered by "
            f"{store.manifest.made_by.get('renderer')} and differs from this run's {renderer.name} by "
            f"{error[worst]:.1f} grey levels, expected at most {PROBE_TOLERANCE}; use the renderer that made "
            f"the store, or precompute again"
        )


def probe_pixels(renderer: Renderer, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
    """View 0 of a few samples as rendered: uint8 (P, 3, side, side), of clips (P, 3, F, side, side)."""
    pixels = [
        batch.cpu() for batch in renderer.render(0, [positions[i : i + 1] for i in range(len(positions))])
    ]
    drawn: NDArray[np.uint8] = torch.cat(pixels).numpy()
    return drawn


def _unmet(store: Store, wanted: dict[str, Any], index: TargetIndex) -> list[Difference]:
    """The fields in which a store does not serve a run; none if it does."""
    unmet = differences(store.manifest.identity, wanted)
    is_subset = len(index) < store.n_samples and all(d.field in PER_SAMPLE for d in unmet)
    return [] if is_subset and first_strange_row(store, index) is None else unmet


def _unmet_by_rows(store: Store, wanted: dict[str, Any], index: TargetIndex) -> list[Difference]:
    """Those of them that its rows depend on."""
    return unmet_by_rows(differences(store.manifest.identity, wanted), store, index)


def named_by(wanted: dict[str, Any], source_name: str) -> dict[str, Any]:
    """A run's fingerprint with its own name of the source, and not the one that a store has."""
    return {**wanted, "source": {**wanted["source"], "name": parse_source(source_name).name}}


def _by_name(store: Store, wanted: dict[str, Any]) -> bool:
    """Whether names, and not a subset's labels, tell a store's fingerprint from a run's."""
    fields = {difference.field for difference in differences(store.manifest.identity, wanted)}
    whole = "target.n_samples" not in fields
    return bool(fields & {"target.name", "target.class_names_sha256", "source.name"}) or (
        whole and "target.labels_sha256" in fields
    )


def _made_of(store: Store) -> dict[str, Any]:
    """A source, whatever its name, and what it is shown."""
    parts = store.manifest.identity
    return {"source": {**parts["source"], "name": None}, "input": parts["input"]}


def _ambiguous(source_name: str, stores: list[Store]) -> StoreMismatch:
    """Networks of one name: which of them teaches is for the user to say."""
    named = source_name.partition(":")[0] in ("program", "run")
    said = "--source with its path" if named else f"--weights {source_name}=FILE"
    made = [store.manifest.made_by for store in stores]
    made_from = ", ".join(
        f"{store.path} from {by.get('asked', {}).get('weights')} of {by.get('created')}"
        for store, by in zip(stores, made, strict=True)
    )
    return StoreMismatch(
        f"{source_name}: {len(stores)} stores serve this run, of networks with other weights ({made_from}); "
        f"say which with {said}, or remove the others with sskt cache prune"
    )


def _of_other_contracts(source_name: str, stores: list[Store]) -> StoreMismatch:
    """One network that was shown other inputs, or whose outputs were read otherwise."""
    first, second = (store.manifest.identity for store in stores[:2])
    pair = [{k: identity[k] for k in ("source", "input")} for identity in (first, second)]
    fields = ", ".join(
        f"{d.field} {d.stored} and {d.wanted}"
        for d in differences(*pair)
        if ABSENT not in (d.stored, d.wanted)
    )
    paths = ", ".join(str(store.path) for store in stores)
    return StoreMismatch(
        f"{source_name}: {len(stores)} stores serve this run, made by other contracts ({paths}"
        f"{'; ' if fields else ''}{fields}); say which with --contract {source_name}=KEY=VALUE,..., or "
        f"remove the others with sskt cache prune"
    )


def _refuse(store: Store, wanted: dict[str, Any], index: TargetIndex) -> None:
    """Raise StoreMismatch, naming the picture as well when contents are what differs."""
    try:
        require_match(store.path, store.manifest.identity, wanted)
    except StoreMismatch as mismatch:
        row = first_strange_row(store, index)
        if row is None:
            raise
        sample = f"{index.ids[row]} ({index.name_of(row)})"
        raise StoreMismatch(
            f"{mismatch}; the first sample without a row of its own is {sample}", mismatch.differences
        ) from None
