"""Stage one: run the frozen sources over every planned view of a target and keep their logits (SSKT eq. 5,
6).

Work is cut into units, (view, block of samples). One pass over the pictures of a unit feeds every source that
still lacks it, and each source's unit is committed whole, so a stopped run is continued by running it again.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

import numpy as np
import torch

from cache.manifest import Manifest
from cache.storage import Location
from cache.store import Store
from pipeline.class_check import say_what_rows_know
from pipeline.data.datasets.registry import parse_target
from pipeline.data.render import Renderer, open_renderer
from pipeline.fingerprint import PROBE_SAMPLES, check_probe, probe_pixels, seen_by
from pipeline.job import Job, destination
from pipeline.named import contract_record
from pipeline.runtime.distributed import Share
from pipeline.runtime.execution import Execution, drawn_at_a_time
from pipeline.runtime.progress import Progress
from pipeline.teachers import choose_forward, open_teacher, recorded_forward
from pipeline.trial import try_source
from pipeline.work import Crew, Work
from sskt.errors import RunError
from sskt.sources.input_map import InputMap
from sskt.sources.source import Source

Say = Callable[[str], None]


@dataclass(slots=True)
class StoreReport:
    """What stage one did for one source."""

    source: str
    path: Location
    n_samples: int
    n_classes: int
    views: int
    rows_done: int = 0  # rows computed by this call; those of earlier calls and other processes do not count
    write_s: float = 0.0
    wall_s: float = 0.0  # of drawing, asking and writing; stores and sources are open by then
    nbytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        rate = self.rows_done / self.wall_s if self.rows_done else None
        return {**asdict(self), "path": str(self.path), "images_s": rate}


def precompute(
    job: Job, *, cache_dir: Location, execution: Execution, share: Share, say: Say
) -> list[StoreReport]:
    """Fill the stores of the job's sources for views 0..views-1; finished units are left alone.

    Other processes may work on the same stores: units are shared by `share` and by claims. Raises
    StoreMismatch if a store with the same fingerprint was made at another precision or its probe pictures no
    longer come out the same, SourceError naming the samples if a source gives logits that are not finite,
    CacheError if the store cannot be written. Units finished before an error or Ctrl-C are kept.
    """
    if job.views < 1:
        raise RunError(f"--views is {job.views}, expected at least 1")
    works = [
        open_work(job, source, input_map, cache_dir, execution, say) for source, input_map in job.sources
    ]
    started = perf_counter()
    todo = sum(len(work.pending) for work in works)
    if not todo:
        say(f"{job.name}: all {job.views} view(s) of {len(works)} source(s) are already there")
    else:
        rows = max(work.frozen.forward.rows for work in works if work.frozen)
        batch = drawn_at_a_time(rows)
        renderer = open_renderer(job.index, job.seen, execution, batch_size=batch)
        with closing(renderer), Progress() as progress:
            crew = Crew(job.index, works, renderer, share, batch_size=batch, progress=progress)
            crew.work(job.views)
        for work in works:
            if work.remark:
                say(work.remark)
        left = sum(len(work.store.pending(job.views)) for work in works)
        if left:
            say(
                f"{job.name}: {left} units are the other ranks'; run the command again if one of them is lost"
            )
    if share.rank == 0:
        for work in works:
            say_what_rows_know(work.store, work.source.spec, job.index, say)
    return [_report(work, job, perf_counter() - started) for work in works]


def open_work(
    job: Job,
    source: Source,
    input_map: InputMap,
    cache_dir: Location,
    execution: Execution,
    say: Say,
) -> Work:
    """Open or create the store of one source, with room for every view; wake the source if it is needed."""
    index, picture_px = job.index, job.plan.side_px
    seen = seen_by(input_map, job.plan)
    place = destination(job, source, input_map, cache_dir, say)
    store = place.store
    if store is not None:
        forward = recorded_forward(store.path, store.manifest.made_by, execution)
        if job.views <= store.n_views and not store.pending(job.views):
            return Work(source, None, store, set())
    frozen = None
    with closing(open_renderer(index, seen, execution, batch_size=1)) as renderer:
        if store is None:
            # before there is a store: a source that does not run leaves none behind, and what is recorded is
            # how it runs
            forward = choose_forward(source, input_map, execution, picture_px, len(index), job.views)
            probe = np.arange(min(PROBE_SAMPLES, len(index)))
            pixels = probe_pixels(renderer, probe)
            frozen = open_teacher(
                source,
                input_map,
                forward,
                execution,
                picture_px,
                say,
                shown=torch.from_numpy(pixels),
            )
            try_source(frozen, index, renderer, say)
            store = Store.create(
                place.path,
                Manifest(place.fields, frozen.forward.to_dict() | _made_by(job, source, execution, renderer)),
                ids=index.ids,
                contents=index.contents,
                n_classes=source.spec.n_classes,
                views=job.views,
                top_k=place.top_k,
                probe_ids=index.ids[probe],
                probe=pixels,
            )  # or another process's, if that was faster
            forward = recorded_forward(store.path, store.manifest.made_by, execution)
        check_probe(store, index, renderer)
    store.grow(job.views)
    store.sweep()
    if frozen is None or frozen.forward != forward:
        shown = torch.from_numpy(store.probe) if len(store.probe) else None
        frozen = open_teacher(
            source, input_map, forward, execution, picture_px, say, shown=shown, store=store.path
        )
    return Work(source, frozen, store, set(store.pending(job.views)))


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


def _report(work: Work, job: Job, wall_s: float) -> StoreReport:
    return StoreReport(
        work.source.spec.name,
        work.store.path,
        len(job.index),
        work.store.n_classes,
        job.views,
        rows_done=work.rows_done,
        write_s=work.write_s,
        wall_s=wall_s,
        nbytes=work.store.nbytes,
    )
