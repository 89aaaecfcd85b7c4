"""Check a store and repair what can be repaired: metadata from its copy, tables from the target, units from
the source.
"""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from cache import (
    TABLES,
    Location,
    Problem,
    Store,
    StoreDamaged,
    Unit,
    repair_metadata,
    table_sha256,
    write_table,
)
from pipeline.data import open_renderer, plan_from
from pipeline.precompute.recompute import Agreement, recompute
from pipeline.precompute.worker import open_worker
from pipeline.runtime import Execution, Paths, Progress, coerce
from pipeline.stores import (
    PROBE_SAMPLES,
    Origin,
    SourceStore,
    open_dataset_of,
    open_frozen,
    open_origin,
    probe_pixels,
    recorded_forward,
    source_plan,
)
from sskt.sources import Forward, FrozenSource, InputMap, default_batch_size

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Verified:
    """The result of `verify`."""

    store: str
    problems: list[dict[str, Any]]  # what is still wrong, after any repair
    repaired: list[str]  # recomputed units and restored files
    agreement: Agreement | None
    verdict: str

    @property
    def good(self) -> bool:
        """Whether the store passes."""
        return not self.problems and (self.agreement is None or self.agreement.good)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {
            **asdict(self),
            "agreement": None if self.agreement is None else self.agreement.to_dict(),
            "good": self.good,
        }


def verify(
    path: Location,
    *,
    n_rows: int | None = None,
    repair: bool = False,
    target: str | None = None,
    weights: Path | None = None,
    paths: Paths,
    execution: Execution,
    seed: int = 0,
) -> Verified:
    """Check everything on disk, repair it if `repair`, and compare `n_rows` random rows with the source.

    `target` and `weights` say where these are if they have moved. Raises what opening them raises, in which
    case nothing has been discarded.
    """
    path, weights = coerce.place(path, "path"), None if weights is None else coerce.path(weights, "weights")
    n_rows, seed = coerce.whole_or_none(n_rows, "n_rows", low=0), coerce.seed(seed)
    repaired = repair_metadata(path) if repair else []
    store = Store.open(path)
    problems = store.verify()
    if problems and repair:
        repaired += _repair(store, problems, paths, execution, target, weights)
        store = Store.open(path)
        problems = store.verify()
    agreement = None
    if n_rows and not problems:
        origin = open_origin(store, paths, target=target, weights=weights)
        frozen = _open_source(store, origin, execution, exact=False)
        agreement = recompute(store, origin, frozen, execution, n=n_rows, seed=seed)
    rows = [{"unit": str(p.unit) if p.unit else None, "problem": p.what} for p in problems]
    verdict = _verdict(store, rows, repaired, agreement)
    return Verified(str(path), rows, repaired, agreement, verdict)


def _repair(
    store: Store,
    problems: list[Problem],
    paths: Paths,
    execution: Execution,
    target: str | None,
    weights: Path | None,
) -> list[str]:
    """Restore tables and recompute units; whatever may fail comes before anything is discarded."""
    dataset = open_dataset_of(store, paths, target=target)
    tables = _damaged_tables(store)
    if tables:
        plan = plan_from(store.manifest.identity["plan"], str(store.path))
        plan = source_plan(InputMap.from_dict(store.manifest.identity["input"]), plan)
        with closing(open_renderer(dataset, plan, execution, batch_size=1)) as renderer:
            n_probe = min(PROBE_SAMPLES, len(dataset))
            rebuilt: dict[str, NDArray[Any]] = {
                "ids": dataset.ids,
                "contents": dataset.contents,
                "probe_ids": dataset.ids[:n_probe],
                "probe": probe_pixels(renderer, range(n_probe)),
            }
        for name in tables:
            if table_sha256(rebuilt[name]) == store.tables_sha256[name]:
                write_table(store.path, name, rebuilt[name])
        store = Store.open(store.path)
    repaired = sorted(set(tables) - set(_damaged_tables(store)))
    units = [problem.unit for problem in problems if problem.unit is not None]
    if units:
        origin = open_origin(store, paths, target=target, weights=weights)
        frozen = _open_source(store, origin, execution, exact=True)
        _recompute_units(store, origin, frozen, units, execution)
        repaired += map(str, units)
    return repaired


def _recompute_units(
    store: Store, origin: Origin, frozen: FrozenSource, units: list[Unit], execution: Execution
) -> None:
    stores = [SourceStore(origin.source, frozen, store, set(units))]
    with (
        Progress() as progress,
        open_worker(origin.dataset, origin.source_plan, stores, execution, progress) as worker,
    ):
        for unit in units:
            store.discard(unit)
        blocks = sorted({unit.block for unit in units})
        tasks = [tuple(unit for unit in units if unit.block == block) for block in blocks]
        worker.show(tasks)
        worker.do(tasks)


def _open_source(store: Store, origin: Origin, execution: Execution, *, exact: bool) -> FrozenSource:
    """Open the source as the store's rows were computed. Unless `exact`, that is when rows are only compared,
    a CPU uses fp32 for rows of a GPU.
    """
    made_by = store.manifest.made_by
    if exact:
        forward = recorded_forward(store.path, made_by, execution)
    else:
        forward = Forward.from_dict(made_by)
        on_gpu = made_by.get("device") == "cuda" or forward.compute == "fp16"
        if on_gpu and execution.device.type == "cpu":
            log.info(
                f"the rows were computed in {forward.compute} on a GPU; this CPU compares them with fp32"
            )
            forward = Forward("fp32", default_batch_size(execution.device), forward.compiled)
    return open_frozen(
        origin.source,
        origin.input_map,
        forward,
        execution,
        origin.plan.side_px,
        shown=torch.from_numpy(store.probe) if len(store.probe) else None,
        store=store.path if exact else None,
    )


def _damaged_tables(store: Store) -> list[str]:
    damaged = []
    for name in TABLES:
        try:
            getattr(store, name)
        except StoreDamaged:
            damaged.append(name)
    return damaged


def _verdict(
    store: Store, problems: list[dict[str, Any]], repaired: list[str], agreement: Agreement | None
) -> str:
    """Summarise the result in one sentence."""
    done = f"{len(repaired)} part(s) repaired; " if repaired else ""
    if problems:
        return f"{store.path}: {done}{len(problems)} problem(s); --repair fixes what can be fixed"
    left = len(store.pending(store.n_views))
    more = f", {left} unit(s) are not finished yet" if left else ""
    sound = f"{done}every finished unit is sound ({store.n_views} views of {store.n_samples} samples{more})"
    if agreement is None:
        return f"{store.path}: {sound}"
    if agreement.good:
        return f"{store.path}: {sound}, and {agreement.rows} rows are what the source says"
    return (
        f"{store.path}: {sound}, but its rows are not what the source says of these pixels; "
        f"remove it (sskt cache prune {store.path}) and precompute again"
    )
