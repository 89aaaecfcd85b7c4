"""What stage one would cost here: bytes and time, from a short probe of drawing, asking and writing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from time import perf_counter
from typing import Any

import numpy as np

from cache import TEMPORARY, CacheError, Location, write_durably
from cache.store import default_block_rows
from pipeline.data.datasets.dataset import Dataset
from pipeline.data.render import in_batches, open_renderer
from pipeline.runtime import Execution, render_batch_size
from pipeline.stores import Destination, Job, choose_forward, destination, open_frozen, recorded_forward
from sskt.errors import RunError
from sskt.sources import FrozenSource, InputMap, Source
from sskt.topk import row_width

_PROBE_PICTURES = 512
_PROBE_S = 3.0
_WRITES = 3


def estimate_job(job: Job, *, cache_dir: Location, execution: Execution) -> list[dict[str, Any]]:
    """One row of plain data per source, and a last one for the job; no store is made.

    rows and hours are of what is not finished yet; pays_after is in epochs: from then on, looking logits up
    has cost less than asking live in every epoch. Raises what opening the sources raises.
    """
    if job.views < 1:
        raise RunError(f"--views is {job.views}, expected at least 1")
    rows, drawn_rows = [], 0
    for source, input_map in job.sources:
        place = destination(job, source, input_map, cache_dir)
        left = _rows_left(job, place)
        drawn_rows = max(drawn_rows, left)
        rows.append(_one(job, source, input_map, place, left, cache_dir, execution))
    draw = _drawing_rate(job, execution)
    # a GPU draws while it asks; CPU cores do the one or the other
    asking = sum(row["_seconds"] for row in rows)
    drawing = drawn_rows / draw
    seconds = max(asking, drawing) if execution.device.type == "cuda" else asking + drawing
    saved = sum(len(job.dataset) / row["forward_img_s"] for row in rows)
    writing = sum(row["_write_s"] for row in rows)
    total = {
        "source": "all, one decode",
        "rows": sum(row["rows"] for row in rows),
        "bytes": sum(row["bytes"] for row in rows),
        "draw_img_s": draw,
        "hours": (seconds + writing) / 3600,
        "pays_after": (seconds + writing) / saved,
    }
    return [{k: v for k, v in row.items() if not k.startswith("_")} for row in rows] + [total]


def _one(
    job: Job,
    source: Source,
    input_map: InputMap,
    place: Destination,
    left: int,
    cache_dir: Location,
    execution: Execution,
) -> dict[str, Any]:
    """One source's row of the table."""
    image_px = job.plan.side_px
    store = place.store
    if store is None:
        forward = choose_forward(source, input_map, execution, image_px, len(job.dataset), job.views)
    else:
        forward = recorded_forward(store.path, store.manifest.made_by, execution)
    frozen = open_frozen(source, input_map, forward, execution, image_px)
    width = 2 * (source.spec.n_classes if place.top_k is None else row_width(place.top_k))
    rate = _asking_rate(frozen)
    written = _writing_rate(cache_dir, width * default_block_rows(len(job.dataset)))
    seconds, write_s = left / rate, left * width / written
    return {
        "source": source.spec.name,
        "rows": left,
        "bytes": width * len(job.dataset) * job.views,
        "bytes_per_row": width,
        "forward_img_s": rate,
        "write_mb_s": written / 1e6,
        "hours": (seconds + write_s) / 3600,
        "_seconds": seconds,
        "_write_s": write_s,
    }


def _rows_left(job: Job, place: Destination) -> int:
    store = place.store
    if store is None:
        return job.views * len(job.dataset)
    missing = store.pending(min(job.views, store.n_views))
    new_views = max(0, job.views - store.n_views)
    sizes = [store.rows_of(unit.block) for unit in missing]
    return sum(int(rows.stop - rows.start) for rows in sizes) + new_views * store.n_samples


def _asking_rate(frozen: FrozenSource) -> float:
    """Pictures per second through a source, for some seconds."""
    batch = render_batch_size(frozen.forward.batch_size)
    pixels = frozen.dummy_input(batch)
    frozen.logits(pixels)
    return batch * _per_second(lambda: frozen.logits(pixels))


def _drawing_rate(job: Job, execution: Execution) -> float:
    """Pictures per second from the renderer, spread over the whole index."""
    dataset: Dataset = job.dataset
    positions = np.unique(np.linspace(0, len(dataset) - 1, _PROBE_PICTURES).astype(np.int64))
    batches = in_batches(positions, 64)
    with closing(open_renderer(dataset, job.source_plan, execution, batch_size=64)) as renderer:
        for _ in renderer.render(0, batches[:1]):  # builds the graph
            pass
        started = perf_counter()
        for _ in renderer.render(0, batches):
            pass
        return len(positions) / (perf_counter() - started)


def _writing_rate(cache_dir: Location, nbytes: int) -> float:
    """Bytes per second, flushed, in files of a unit's size. Raises CacheError if none can be written."""
    probe = cache_dir / f"write-probe{TEMPORARY}0"  # swept with all that killed runs leave
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
