"""Estimate what stage one would cost here, in bytes and time, from a short probe of drawing, forwards and
writing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np

from cache import TEMPORARY, CacheError, Location, default_block_rows, write_durably
from pipeline.data import Dataset, in_batches, open_renderer
from pipeline.runtime import Execution, render_batch_size
from pipeline.stores import Destination, Job, choose_forward, destination, open_frozen, recorded_forward
from sskt.errors import RunError
from sskt.sources import FrozenSource, InputMap, Source, open_outputs
from sskt.topk import row_width

_PROBE_IMAGES = 512
_PROBE_S = 3.0
_WRITES = 3


def estimate_job(job: Job, *, cache_dir: Location, execution: Execution) -> list[dict[str, Any]]:
    """Return one row of plain data per source, and a last one for the job; creates no store.

    rows and hours count only what is unfinished. pays_after is in epochs: after that many, reading stored
    logits has cost less than live sources would have. Raises what opening the sources raises.
    """
    if job.views < 1:
        raise RunError(f"--views is {job.views}, expected at least 1")
    by_network: dict[tuple[int, InputMap], list[tuple[Source, Destination]]] = {}
    for source, input_map in job.sources:
        place = destination(job, source, input_map, cache_dir)
        network = id(source.network or source), input_map
        by_network.setdefault(network, []).append((source, place))
    rows = []
    for (_, input_map), outputs in by_network.items():
        rows += _estimate_network(job, outputs, input_map, cache_dir, execution)
    draw_rate = _drawing_rate(job, execution)
    # drawing and forwards overlap with a GPU, and compete for the cores of a CPU
    forward_s = sum(row["_seconds"] for row in rows)
    draw_s = max(row["rows"] for row in rows) / draw_rate
    seconds = max(forward_s, draw_s) if execution.device.type == "cuda" else forward_s + draw_s
    saved_s = sum(row["_epoch_s"] for row in rows)
    write_s = sum(row["_write_s"] for row in rows)
    total = {
        "source": "all, one decode",
        "rows": sum(row["rows"] for row in rows),
        "bytes": sum(row["bytes"] for row in rows),
        "draw_img_s": draw_rate,
        "hours": (seconds + write_s) / 3600,
        "pays_after": (seconds + write_s) / saved_s,
    }
    return [{k: v for k, v in row.items() if not k.startswith("_")} for row in rows] + [total]


def _estimate_network(
    job: Job,
    outputs: list[tuple[Source, Destination]],
    input_map: InputMap,
    cache_dir: Location,
    execution: Execution,
) -> list[dict[str, Any]]:
    """The table rows of the outputs of one network, whose forwards are counted once, in the hours of the
    output that lacks most; keys that start with "_" are for the total only.
    """
    image_px, n_samples = job.plan.side_px, len(job.dataset)
    joined = open_outputs(outputs[0][0], [source.spec.output for source, _ in outputs])
    stores = [place.store for _, place in outputs]
    store = next((store for store in stores if store is not None), None)
    if store is None:
        forward = choose_forward(joined, input_map, execution, image_px, n_samples, job.views)
    else:
        forward = recorded_forward(store.path, store.manifest.made_by, execution)
    frozen = open_frozen(joined, input_map, replace(forward, outputs=()), execution, image_px)
    forward_rate = _forward_rate(frozen)
    left = [_rows_left(job, place) for _, place in outputs]
    rows = []
    for i, (source, place) in enumerate(outputs):
        width = 2 * (source.spec.n_classes if place.top_k is None else row_width(place.top_k))
        write_rate = _writing_rate(cache_dir, width * default_block_rows(n_samples))
        counts_forwards = i == left.index(max(left))
        seconds, write_s = counts_forwards * left[i] / forward_rate, left[i] * width / write_rate
        rows.append(
            {
                "source": source.spec.name,
                "rows": left[i],
                "bytes": width * n_samples * job.views,
                "bytes_per_row": width,
                "forward_img_s": forward_rate,
                "write_mb_s": write_rate / 1e6,
                "hours": (seconds + write_s) / 3600,
                "_seconds": seconds,
                "_write_s": write_s,
                "_epoch_s": counts_forwards * n_samples / forward_rate,
            }
        )
    return rows


def _rows_left(job: Job, place: Destination) -> int:
    store = place.store
    if store is None:
        return job.views * len(job.dataset)
    missing = store.pending(min(job.views, store.n_views))
    new_views = max(0, job.views - store.n_views)
    sizes = [store.rows_of(unit.block) for unit in missing]
    return sum(int(rows.stop - rows.start) for rows in sizes) + new_views * store.n_samples


def _forward_rate(frozen: FrozenSource) -> float:
    """Images per second through a source, measured for a few seconds."""
    batch = render_batch_size(frozen.forward.batch_size)
    pixels = frozen.dummy_input(batch)
    frozen.logits(pixels)
    return batch * _per_second(lambda: frozen.logits(pixels))


def _drawing_rate(job: Job, execution: Execution) -> float:
    """Images per second from the renderer, for samples spread over the whole dataset."""
    dataset: Dataset = job.dataset
    positions = np.unique(np.linspace(0, len(dataset) - 1, _PROBE_IMAGES).astype(np.int64))
    batches = in_batches(positions, 64)
    with closing(open_renderer(dataset, job.source_plan, execution, batch_size=64)) as renderer:
        for _ in renderer.render(0, batches[:1]):  # builds the graph
            pass
        started = perf_counter()
        for pixels in renderer.render(0, batches):
            last = pixels
        last.cpu()  # which waits for a GPU that draws
        return len(positions) / (perf_counter() - started)


def _writing_rate(cache_dir: Location, nbytes: int) -> float:
    """Bytes per second, flushed, in files of a unit's size. Raises CacheError if writing fails."""
    probe = cache_dir / f"write-probe{TEMPORARY}0"  # a name that is swept with what killed runs leave behind
    data = np.random.default_rng(0).bytes(nbytes)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        started = perf_counter()
        for _ in range(_WRITES):
            write_durably(probe, data)
        took = perf_counter() - started
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise CacheError(
            f"{cache_dir}: {nbytes:,} bytes cannot be written ({error.strerror or error}), which an estimate "
            f"tries out; make room or make the folder writable, or choose another --cache-dir"
        ) from error
    return _WRITES * nbytes / took


def _per_second(act: Callable[[], object]) -> float:
    started, n = perf_counter(), 0
    while perf_counter() - started < _PROBE_S:
        act()
        n += 1
    return n / (perf_counter() - started)
