"""A store to be filled, and the source that fills it."""

from __future__ import annotations

import importlib.metadata
import platform
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from rich.progress import TaskID

from cache import Location, Manifest, Store
from cache.unit import Unit
from pipeline.data.datasets.registry import parse_target
from pipeline.data.render import Renderer, open_renderer
from pipeline.runtime import Execution
from pipeline.stores.contracts import contract_record
from pipeline.stores.fingerprint import PROBE_SAMPLES, check_probe, probe_pixels, source_plan
from pipeline.stores.job import Job
from pipeline.stores.match import destination
from pipeline.stores.sources import choose_forward, open_frozen, recorded_forward
from pipeline.stores.trial import try_source
from sskt.sources import FrozenSource, InputMap, Source


@dataclass(slots=True, eq=False)
class SourceStore:
    """One source on its way through stage one; `frozen` is None if its store lacks nothing."""

    source: Source
    frozen: FrozenSource | None
    store: Store
    pending: set[Unit]
    rows_done: int = 0  # computed here
    rows_twice: int = 0  # of these, that another process had written meanwhile: its are kept
    write_s: float = 0.0
    bar: TaskID | None = None

    @property
    def remark(self) -> str | None:
        """What there is to say of rows that were computed twice."""
        if not self.rows_twice:
            return None
        return (
            f"{self.source.spec.name}: {self.rows_twice:,} rows were computed here and by another process, "
            f"which wrote them first; its rows are kept"
        )


def open_source_store(
    job: Job, source: Source, input_map: InputMap, cache_dir: Location, execution: Execution
) -> SourceStore:
    """Open or create the store of one source, with room for every view; wake the source if it is needed."""
    dataset, image_px = job.dataset, job.plan.side_px
    seen = source_plan(input_map, job.plan)
    place = destination(job, source, input_map, cache_dir)
    store = place.store
    if store is not None:
        forward = recorded_forward(store.path, store.manifest.made_by, execution)
        if job.views <= store.n_views and not store.pending(job.views):
            return SourceStore(source, None, store, set())
    frozen = None
    with closing(open_renderer(dataset, seen, execution, batch_size=1)) as renderer:
        if store is None:
            # before there is a store: a source that does not run leaves none behind, and what is recorded is
            # how it runs
            forward = choose_forward(source, input_map, execution, image_px, len(dataset), job.views)
            probe = np.arange(min(PROBE_SAMPLES, len(dataset)))
            pixels = probe_pixels(renderer, probe)
            frozen = open_frozen(
                source, input_map, forward, execution, image_px, shown=torch.from_numpy(pixels)
            )
            try_source(frozen, dataset, renderer)
            store = Store.create(
                place.path,
                Manifest(place.fields, frozen.forward.to_dict() | _made_by(job, source, execution, renderer)),
                ids=dataset.ids,
                contents=dataset.contents,
                n_classes=source.spec.n_classes,
                views=job.views,
                top_k=place.top_k,
                probe_ids=dataset.ids[probe],
                probe=pixels,
            )  # or another process's, if that was faster
            forward = recorded_forward(store.path, store.manifest.made_by, execution)
        check_probe(store, dataset, renderer)
    store.grow(job.views)
    store.sweep()
    if frozen is None or frozen.forward != forward:
        shown = torch.from_numpy(store.probe) if len(store.probe) else None
        frozen = open_frozen(source, input_map, forward, execution, image_px, shown=shown, store=store.path)
    return SourceStore(source, frozen, store, set(store.pending(job.views)))


def _made_by(job: Job, source: Source, execution: Execution, renderer: Renderer) -> dict[str, Any]:
    """What a store was made with: for the record, but for how its rows are computed (`recorded_forward`) and
    where to look for what it was made from (`open_origin`).
    """
    packages = ("torch", "torchvision", "numpy", "zarr", "nvidia-dali-cuda130")
    installed = {d.metadata["Name"] for d in importlib.metadata.distributions()}
    return {
        "asked": {
            "target": parse_target(job.target).as_given,  # as any folder reads it
            "weights": str(source.weights_path.absolute()),
            **contract_record(source),
        },
        "renderer": renderer.name,
        "device": execution.device.type,
        "machine": platform.machine(),
        "versions": {name: importlib.metadata.version(name) for name in packages if name in installed},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
