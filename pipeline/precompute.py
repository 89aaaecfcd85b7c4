"""Stage one: run the frozen sources over every planned view of a target and keep their logits (SSKT eq. 5, 6).

Work is cut into units, (view, block of samples). One pass over the pictures of a unit feeds every source that still
lacks it, and each source's unit is committed whole, so a stopped run is continued by running it again.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from cache.errors import StoreMismatch
from cache.manifest import Manifest
from cache.store import Store
from cache.unit import Unit
from pipeline.fingerprint import (
    PROBE_SAMPLES,
    check_probe,
    identity,
    probe_pixels,
    source_identity,
    store_folder,
)
from pipeline.plan import Plan
from pipeline.progress import Progress
from pipeline.render import Renderer, in_batches, open_renderer
from pipeline.targets.index import TargetIndex
from sskt.errors import RunError, SourceError
from sskt.frozen import FrozenSource, InputMap
from sskt.sources import Source

_MOST_CLASSES = (
    2048  # all stores of a target get the same blocks, so that one pass over the pictures feeds every source
)


@dataclass(frozen=True, slots=True)
class Execution:
    """How work is run. Nothing here enters a fingerprint, save that stage one's precision is recorded with its store."""

    device: torch.device
    compute: str = "fp32"  # precision of the frozen networks: fp32, bf16 or fp16
    renderer: str = "auto"
    threads: int = 2
    batch_size: int = 64  # pictures rendered at a time


@dataclass(slots=True)
class StoreReport:
    """What stage one did for one source."""

    source: str
    path: Path
    n_samples: int
    n_classes: int
    views: int
    rows_done: int = 0  # rows computed by this call; finished units of earlier ones are not counted
    forward_s: float = 0.0
    write_s: float = 0.0
    wall_s: float = 0.0
    nbytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        rate = self.rows_done / self.wall_s if self.rows_done else None
        return {**asdict(self), "path": str(self.path), "images_s": rate}


@dataclass(slots=True)
class _Work:
    """One source on its way through stage one."""

    frozen: FrozenSource
    store: Store
    report: StoreReport
    pending: set[Unit] = field(default_factory=set)


def precompute(
    index: TargetIndex,
    sources: list[tuple[Source, InputMap]],
    plan: Plan,
    *,
    views: int,
    cache_dir: Path,
    execution: Execution,
    say: Callable[[str], None],
) -> list[StoreReport]:
    """Fill the stores of `sources` for views 0..views-1 of `index`; finished units are left alone.

    Raises StoreMismatch if a store with the same fingerprint was made at another precision or its probe pictures no longer
    come out the same, SourceError naming the samples if a source gives logits that are not finite, CacheError if the store
    cannot be written. Units finished before an error or Ctrl-C are kept.
    """
    if views < 1:
        raise RunError(f"--views is {views}, expected at least 1")
    renderer = open_renderer(
        index,
        plan,
        backend=execution.renderer,
        device=execution.device,
        batch_size=execution.batch_size,
        threads=execution.threads,
    )
    with closing(renderer):
        works = [
            _open_work(index, source, input_map, plan, views, cache_dir, execution, renderer)
            for source, input_map in sources
        ]
        units = sorted(set().union(*(work.pending for work in works)), key=lambda u: (u.view, u.block))
        if not units:
            say(
                f"{index.target}/{index.split}: all {views} views of {len(works)} source(s) are already there"
            )
        started = perf_counter()
        with Progress(
            f"{index.target}/{index.split}", total=sum(_n_rows(works[0].store, u) for u in units)
        ) as progress:
            for unit in units:
                _do_unit(
                    index,
                    renderer,
                    unit,
                    [w for w in works if unit in w.pending],
                    execution.batch_size,
                    progress,
                )
        for work in works:
            work.report.wall_s = perf_counter() - started
            work.report.nbytes = work.store.nbytes
    return [work.report for work in works]


def _open_work(
    index: TargetIndex,
    source: Source,
    input_map: InputMap,
    plan: Plan,
    views: int,
    cache_dir: Path,
    execution: Execution,
    renderer: Renderer,
) -> _Work:
    """Open or create the store of one source, with room for `views`."""
    frozen = FrozenSource(source, input_map, device=execution.device, compute=execution.compute)
    wanted = identity(
        source_identity(source.spec, source.weights_sha256, source.spec.n_classes), input_map, plan, index
    )
    manifest = Manifest(identity=wanted, made_by=_made_by(execution, renderer))
    path = store_folder(cache_dir, index, source.spec.name) / f"{manifest.digest}.zarr"
    if path.exists():
        store = Store.open(path)
        _check_maker(store, manifest)
        check_probe(store, index, renderer)
        store.grow(views)
    else:
        positions = np.arange(min(PROBE_SAMPLES, len(index)))
        store = Store.create(
            path,
            manifest,
            ids=index.ids,
            contents=index.contents,
            n_classes=source.spec.n_classes,
            views=views,
            probe_ids=index.ids[positions],
            probe=probe_pixels(renderer, positions),
        )
    report = StoreReport(source.spec.name, store.path, len(index), store.n_classes, views)
    return _Work(frozen, store, report, set(store.pending(views)))


def _do_unit(
    index: TargetIndex,
    renderer: Renderer,
    unit: Unit,
    works: list[_Work],
    batch_size: int,
    progress: Progress,
) -> None:
    """Render a block of one view once, ask every source, and commit each one's rows."""
    rows = works[0].store.rows_of(unit.block)
    positions = np.arange(rows.start, rows.stop)
    logits = [np.empty((len(positions), work.store.n_classes), dtype=np.float16) for work in works]
    done = 0
    for pixels in renderer.render(unit.view, in_batches(positions, batch_size)):
        pixels_on_device = pixels.to(works[0].frozen.device, non_blocking=True)
        for work, out in zip(works, logits, strict=True):
            started = perf_counter()
            out[done : done + len(pixels)] = _ask(
                work.frozen, pixels_on_device, index, positions[done:], unit.view
            )
            work.report.forward_s += perf_counter() - started
        done += len(pixels)
        progress.advance(len(pixels))
    for work, out in zip(works, logits, strict=True):
        started = perf_counter()
        work.store.write_unit(unit, out)
        work.report.write_s += perf_counter() - started
        work.report.rows_done += len(out)


def _ask(
    frozen: FrozenSource, pixels: torch.Tensor, index: TargetIndex, positions: np.ndarray, view: int
) -> np.ndarray:
    """One source's logits for a batch, on the CPU: float16 (n, K)."""
    try:
        return frozen.logits(pixels).cpu().numpy()
    except SourceError as error:
        rows = getattr(error, "rows", None)
        if rows is None:
            raise
        names = ", ".join(
            f"{index.ids[positions[r]]} ({index.name_of(int(positions[r]))})" for r in list(rows)[:3]
        )
        raise SourceError(f"{error}; view {view}, samples {names}; nothing of this unit was kept") from error


def _n_rows(store: Store, unit: Unit) -> int:
    rows = store.rows_of(unit.block)
    return int(rows.stop - rows.start)


def _made_by(execution: Execution, renderer: Renderer) -> dict[str, Any]:
    """What a store was made with: recorded, and only precision and renderer are ever compared."""
    packages = ("torch", "torchvision", "numpy", "zarr", "nvidia-dali-cuda130")
    installed = {d.metadata["Name"] for d in importlib.metadata.distributions()}
    return {
        "compute": execution.compute,
        "renderer": renderer.name,
        "device": execution.device.type,
        "machine": platform.machine(),
        "versions": {name: importlib.metadata.version(name) for name in packages if name in installed},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _check_maker(store: Store, manifest: Manifest) -> None:
    """Refuse to mix rows of two precisions in one store."""
    stored, wanted = store.manifest.made_by.get("compute"), manifest.made_by["compute"]
    if stored != wanted:
        raise StoreMismatch(
            f"{store.path}: its rows were computed in {stored}, this run would add rows in {wanted}; "
            f"pass --amp {stored}, or remove the store with its folder to start over"
        )
