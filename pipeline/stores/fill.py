"""Open a store to fill, and the source that fills it."""

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

from cache import LOGITS, REPRESENTATIONS, Location, Manifest, Store
from cache.unit import Unit
from pipeline.data import Renderer, open_renderer, parse_target
from pipeline.runtime import Execution
from pipeline.stores.contracts import contract_record
from pipeline.stores.fingerprint import PROBE_SAMPLES, check_probe, probe_pixels, source_plan
from pipeline.stores.job import Job
from pipeline.stores.match import destination
from pipeline.stores.sources import choose_forward, open_frozen, recorded_forward
from pipeline.stores.trial import try_source
from sskt.sources import LOGITS_OUTPUT, FrozenSource, InputMap, Source


@dataclass(slots=True, eq=False)
class SourceStore:
    """A source and the store that it fills; `frozen` is None if the store is complete."""

    source: Source
    frozen: FrozenSource | None
    store: Store
    pending: set[Unit]
    rows_done: int = 0  # computed by this process
    rows_twice: int = 0  # those of them that another process wrote first: its rows are kept
    write_s: float = 0.0
    bar: TaskID | None = None

    @property
    def remark(self) -> str | None:
        """A message about rows that were computed twice; None if there are none."""
        if not self.rows_twice:
            return None
        return (
            f"{self.source.spec.name}: {self.rows_twice:,} rows were computed here and by another process, "
            f"which wrote them first; its rows are kept"
        )


def open_source_store(
    job: Job, source: Source, input_map: InputMap, cache_dir: Location, execution: Execution
) -> SourceStore:
    """Open or create one source's store, with room for every view; load the source if anything is missing."""
    dataset, image_px = job.dataset, job.plan.side_px
    plan = source_plan(input_map, job.plan)
    place = destination(job, source, input_map, cache_dir)
    store = place.store
    if store is not None:
        forward = recorded_forward(store.path, store.manifest.made_by, execution)
        if job.views <= store.n_views and not store.pending(job.views):
            return SourceStore(source, None, store, set())
    frozen = None
    with closing(open_renderer(dataset, plan, execution, batch_size=1)) as renderer:
        if store is None:
            # run the source before creating the store: a source that fails leaves no store behind, and the
            # store records how the source really runs
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
                kind=LOGITS if source.spec.output == LOGITS_OUTPUT else REPRESENTATIONS,
                probe_ids=dataset.ids[probe],
                probe=pixels,
            )  # opens another process's store if that was faster
            forward = recorded_forward(store.path, store.manifest.made_by, execution)
        check_probe(store, dataset, renderer)
    store.grow(job.views)
    store.sweep()
    if frozen is None or frozen.forward != forward:
        shown = torch.from_numpy(store.probe) if len(store.probe) else None
        frozen = open_frozen(source, input_map, forward, execution, image_px, shown=shown, store=store.path)
    return SourceStore(source, frozen, store, set(store.pending(job.views)))


def _made_by(job: Job, source: Source, execution: Execution, renderer: Renderer) -> dict[str, Any]:
    """What a store was made with. Only for the record, except how its rows are computed (`recorded_forward`)
    and where the data and weights that it was made from lie (`open_origin`).
    """
    packages = ("torch", "torchvision", "numpy", "zarr", "nvidia-dali-cuda130")
    installed = {d.metadata["Name"] for d in importlib.metadata.distributions()}
    return {
        "asked": {
            "target": parse_target(job.target).as_given,  # readable from any working directory
            "weights": str(source.weights_path.absolute()),
            **contract_record(source),
        },
        "renderer": renderer.name,
        "device": execution.device.type,
        "machine": platform.machine(),
        "versions": {name: importlib.metadata.version(name) for name in packages if name in installed},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
