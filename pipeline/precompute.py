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
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cache.errors import StoreMismatch
from cache.manifest import Manifest
from cache.store import Store
from cache.unit import Unit
from pipeline.execution import Execution
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
from pipeline.render import Renderer, in_batches
from pipeline.targets.index import TargetIndex
from sskt.errors import RunError, SourceError
from sskt.frozen import FrozenSource, InputMap, NonFiniteLogitsError
from sskt.sources import Source

_MOST_CLASSES = (
    2048  # all stores of a target get the same blocks, so that one pass over the pictures feeds every source
)


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
    pending: set[Unit]


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

    Raises StoreMismatch if a store with the same fingerprint was made at another precision or its probe
    pictures no longer come out the same, SourceError naming the samples if a source gives logits that are not
    finite, CacheError if the store cannot be written. Units finished before an error or Ctrl-C are kept.
    """
    if views < 1:
        raise RunError(f"--views is {views}, expected at least 1")
    renderer = execution.open_renderer(index, plan, batch_size=execution.batch_size)
    with closing(renderer):
        stage = _StageOne(index, plan, views, cache_dir, execution, renderer)
        works = [stage.open_work(source, input_map) for source, input_map in sources]
        units = sorted(set().union(*(work.pending for work in works)))
        name = f"{index.target}/{index.split}"
        if not units:
            say(f"{name}: all {views} view(s) of {len(works)} source(s) are already there")
        started = perf_counter()
        with Progress(name, total=sum(len(stage.positions_of(works, unit)) for unit in units)) as progress:
            for unit in units:
                stage.do_unit(unit, [work for work in works if unit in work.pending], progress)
        for work in works:
            work.report.wall_s = perf_counter() - started
            work.report.nbytes = work.store.nbytes
    return [work.report for work in works]


@dataclass(frozen=True, slots=True)
class _StageOne:
    """One target's pass: what is drawn, how, and where it is kept."""

    index: TargetIndex
    plan: Plan
    views: int
    cache_dir: Path
    execution: Execution
    renderer: Renderer

    def open_work(self, source: Source, input_map: InputMap) -> _Work:
        """Open or create the store of one source, with room for every view."""
        index, execution = self.index, self.execution
        frozen = FrozenSource(source, input_map, device=execution.device, compute=execution.compute)
        n_classes = source.spec.n_classes
        about_source = source_identity(source.spec, source.weights_sha256, n_classes)
        manifest = Manifest(
            identity=identity(about_source, input_map, self.plan, index),
            made_by=_made_by(execution, self.renderer),
        )
        path = store_folder(self.cache_dir, index, source.spec.name) / f"{manifest.digest}.zarr"
        if path.exists():
            store = Store.open(path)
            _check_maker(store, manifest)
            check_probe(store, index, self.renderer)
            store.grow(self.views)
        else:
            probe = np.arange(min(PROBE_SAMPLES, len(index)))
            store = Store.create(
                path,
                manifest,
                ids=index.ids,
                contents=index.contents,
                n_classes=n_classes,
                views=self.views,
                probe_ids=index.ids[probe],
                probe=probe_pixels(self.renderer, probe),
            )
        report = StoreReport(source.spec.name, path, len(index), n_classes, self.views)
        return _Work(frozen, store, report, set(store.pending(self.views)))

    def positions_of(self, works: list[_Work], unit: Unit) -> NDArray[np.int64]:
        """The index rows of a unit; all stores of a target have the same blocks."""
        rows = works[0].store.rows_of(unit.block)
        return np.arange(rows.start, rows.stop)

    def do_unit(self, unit: Unit, works: list[_Work], progress: Progress) -> None:
        """Draw a block of one view once, ask every source, and commit each one's rows."""
        positions = self.positions_of(works, unit)
        logits = [np.empty((len(positions), work.store.n_classes), dtype=np.float16) for work in works]
        done = 0
        batches = in_batches(positions, self.execution.batch_size)
        with closing(self.renderer.render(unit.view, batches)) as drawn:
            for batch, pixels in zip(batches, drawn, strict=True):
                pixels_there = pixels.to(self.execution.device, non_blocking=True)
                for work, out in zip(works, logits, strict=True):
                    started = perf_counter()
                    out[done : done + len(batch)] = self.ask(work.frozen, pixels_there, batch, unit.view)
                    work.report.forward_s += perf_counter() - started
                done += len(batch)
                progress.advance(len(batch))
        for work, out in zip(works, logits, strict=True):
            started = perf_counter()
            work.store.write_unit(unit, out)
            work.report.write_s += perf_counter() - started
            work.report.rows_done += len(out)

    def ask(
        self, frozen: FrozenSource, pixels: torch.Tensor, positions: NDArray[np.int64], view: int
    ) -> NDArray[np.float16]:
        """One source's logits for a batch, on the CPU: float16 (n, K)."""
        try:
            logits: NDArray[np.float16] = frozen.logits(pixels).cpu().numpy()
        except NonFiniteLogitsError as error:
            bad = [int(positions[row]) for row in error.rows[:3]]
            names = ", ".join(f"{self.index.ids[p]} ({self.index.name_of(p)})" for p in bad)
            raise SourceError(
                f"{error}; view {view}, samples {names}; nothing of this unit was kept"
            ) from error
        return logits


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
