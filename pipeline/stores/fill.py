"""Open the stores that a job fills, and the sources that fill them."""

from __future__ import annotations

import importlib.metadata
import platform
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any

import torch
from rich.progress import TaskID

from cache import LOGITS, REPRESENTATIONS, Location, Manifest, Store, Unit
from pipeline.data import Renderer, open_renderer, parse_target
from pipeline.runtime import Execution
from pipeline.stores.fingerprint import PROBE_SAMPLES, check_probe, probe_pixels
from pipeline.stores.job import Job
from pipeline.stores.match import Destination, destination
from pipeline.stores.sources import choose_forward, open_frozen, recorded_forward, warn_of_padding
from pipeline.stores.trial import try_source
from sskt.sources import LOGITS_OUTPUT, Forward, FrozenSource, InputMap, Source, open_outputs


@dataclass(slots=True, eq=False)
class SourceStore:
    """A source and the store that it fills; `frozen` computes its rows, perhaps with those of other outputs
    of its network; None if the store is complete.
    """

    source: Source
    frozen: FrozenSource | None
    store: Store
    pending: set[Unit]
    rows_done: int = 0  # computed by this process
    rows_twice: int = 0  # those of them that were in the store already: its rows are kept
    write_s: float = 0.0
    bar: TaskID | None = None

    @property
    def columns(self) -> slice:
        """Where this source's numbers are in a row of what `frozen` computes."""
        return slice(None) if self.frozen is None else self.frozen.source.columns_of(self.source.spec.output)

    @property
    def remark(self) -> str | None:
        """A message about rows that were computed twice; None if there are none."""
        if not self.rows_twice:
            return None
        return (
            f"{self.source.spec.name}: {self.rows_twice:,} rows were in the store already when they had been "
            f"computed here, from another process or one that was killed; those are kept (with RANK and "
            f"WORLD_SIZE, processes share the work)"
        )


@dataclass(slots=True, eq=False)
class _Missing:
    """A source whose store lacks rows, or does not exist yet."""

    source: Source
    input_map: InputMap
    place: Destination
    store: Store | None

    @property
    def network(self) -> tuple[int, InputMap]:
        """The same for outputs that one forward can compute."""
        return id(self.source.network or self.source), self.input_map

    @property
    def filled(self) -> Store:
        """The store, which exists by now."""
        assert self.store is not None  # noqa: S101 - `_create` made it
        return self.store


def open_source_stores(
    job: Job, cache_dir: Location, execution: Execution, *, n_step: int | None = None
) -> list[SourceStore]:
    """Open or create the store of every source of a job, with room for every view, and load the networks of
    those that lack rows. Outputs of one network come from one forward, unless their stores record that they
    were computed in different ways. `n_step`: samples of the training steps that will ask, if such do.
    """
    opened: list[SourceStore | _Missing] = []
    for source, input_map in job.sources:
        place = destination(job, source, input_map, cache_dir)
        store = place.store
        if store is not None:
            recorded_forward(store.path, store.manifest.made_by, execution)
            if job.views <= store.n_views and not store.pending(job.views):
                opened.append(SourceStore(source, None, store, set()))
                continue
        opened.append(_Missing(source, input_map, place, store))
    missing = [each for each in opened if isinstance(each, _Missing)]
    frozen_of: dict[_Missing, FrozenSource] = {}
    if missing:
        drawing = execution.for_single_images
        with closing(open_renderer(job.dataset, job.source_plan, drawing, batch_size=1)) as renderer:
            new: dict[tuple[int, InputMap], list[_Missing]] = {}
            for each in missing:
                if each.store is None:
                    new.setdefault(each.network, []).append(each)
            begun = [each for each in missing if each.store is not None]
            created = [
                _create(job, group, _outputs_of(group, begun, execution), execution, renderer, n_step)
                for group in new.values()
            ]
            for each in missing:
                check_probe(each.filled, job.dataset, renderer)
        for each in missing:
            each.filled.grow(job.views)
            each.filled.sweep()
        frozen_of = _open_together(job, missing, created, execution)
        if n_step is not None:
            for each, frozen in frozen_of.items():
                warn_of_padding(each.filled.path, frozen, execution, n_step)
    return [
        SourceStore(each.source, frozen_of[each], each.filled, set(each.filled.pending(job.views)))
        if isinstance(each, _Missing)
        else each
        for each in opened
    ]


def _outputs_of(group: list[_Missing], begun: list[_Missing], execution: Execution) -> tuple[str, ...]:
    """The outputs that the stores of a group, which are to be created, are computed with: their own, or those
    that a store was begun with by a process that did not live to create all of them.
    """
    own = tuple(each.source.spec.output for each in group)
    for each in begun:
        recorded = recorded_forward(each.filled.path, each.filled.manifest.made_by, execution).outputs
        if each.network == group[0].network and set(own) < set(recorded):
            return recorded
    return own


def _create(
    job: Job,
    group: list[_Missing],
    outputs: tuple[str, ...],
    execution: Execution,
    renderer: Renderer,
    n_step: int | None,
) -> FrozenSource:
    """Create the stores of a group of outputs of one network; returns that, which computes `outputs`.

    It runs before any store is created: a source that fails leaves no store behind, and the stores record how
    it really runs.
    """
    dataset, image_px, first = job.dataset, job.plan.side_px, group[0]
    source = open_outputs(first.source, outputs)
    forward = choose_forward(
        source, first.input_map, execution, image_px, len(dataset), job.views, n_step=n_step
    )
    probe = range(min(PROBE_SAMPLES, len(dataset)))
    pixels = probe_pixels(renderer, probe)
    frozen = open_frozen(
        source,
        first.input_map,
        _computing(forward, outputs),
        execution,
        image_px,
        shown=torch.from_numpy(pixels),
    )
    try_source(frozen, dataset, renderer)
    how = frozen.forward.to_dict()
    for each in group:
        each.store = Store.create(
            each.place.path,
            Manifest(each.place.fields, how | _made_by(job, each.source, execution, renderer)),
            ids=dataset.ids,
            contents=dataset.contents,
            n_classes=each.source.spec.n_classes,
            views=job.views,
            top_k=each.place.top_k,
            kind=LOGITS if each.source.spec.output == LOGITS_OUTPUT else REPRESENTATIONS,
            probe_ids=dataset.ids[probe],
            probe=pixels,
        )  # opens another process's store if that was faster
    return frozen


def _open_together(
    job: Job, missing: list[_Missing], created: list[FrozenSource], execution: Execution
) -> dict[_Missing, FrozenSource]:
    """What computes each store's rows as it records: one of `created`, or opened here."""
    groups: dict[tuple[tuple[int, InputMap], Forward], list[_Missing]] = {}
    for each in missing:
        forward = recorded_forward(each.filled.path, each.filled.manifest.made_by, execution)
        if forward.compiled:  # with which other outputs decides the last bits of a row
            forward = replace(forward, outputs=forward.outputs or (each.source.spec.output,))
        groups.setdefault((each.network, forward), []).append(each)
    frozen_of = {}
    for (_, forward), group in groups.items():
        first = group[0]
        outputs = forward.outputs or tuple(each.source.spec.output for each in group)
        forward = _computing(forward, outputs)
        network = first.source.network or first.source
        same = [
            each
            for each in created
            if (each.source.network or each.source) is network
            and (each.input_map, each.forward) == (first.input_map, forward)
            and [part.spec.output for part, _ in each.source.with_columns()] == list(outputs)
        ]
        frozen = same[0] if same else None
        if frozen is None:
            probe = first.filled.probe
            frozen = open_frozen(
                first.source,
                first.input_map,
                forward,
                execution,
                job.plan.side_px,
                shown=torch.from_numpy(probe) if len(probe) else None,
                store=first.filled.path,
            )
        frozen_of.update(dict.fromkeys(group, frozen))
    return frozen_of


def _computing(forward: Forward, outputs: tuple[str, ...]) -> Forward:
    """`forward`, of several outputs or of one alone."""
    return replace(forward, outputs=outputs if len(outputs) > 1 else ())


def _made_by(job: Job, source: Source, execution: Execution, renderer: Renderer) -> dict[str, Any]:
    """What a store was made with. Only for the record, except how its rows are computed (`recorded_forward`)
    and where the data and weights that it was made from lie (`open_origin`).
    """
    return {
        "asked": {
            "target": parse_target(job.target).as_given,  # readable from any working directory
            "weights": str(source.weights_path.absolute()),
            **_contract_record(source),
        },
        "renderer": renderer.name,
        "device": execution.device.type,
        "machine": platform.machine(),
        "versions": _versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@cache
def _versions() -> dict[str, str]:
    """Of the packages that decide a row's bits, those that are installed."""
    packages = (
        "torch",
        "torchvision",
        "timm",
        "transformers",
        "onnxruntime",
        "numpy",
        "zarr",
        "nvidia-dali-cuda130",
    )
    installed = {d.metadata["Name"] for d in importlib.metadata.distributions()}
    return {name: importlib.metadata.version(name) for name in packages if name in installed}


def _contract_record(source: Source) -> dict[str, Any]:
    """What a store records beside its fingerprint: the declared contract, and the user's part of it."""
    if source.declared is None:
        return {}
    parts = {"contract": source.declared.contract.to_dict(), "told": source.declared.told.to_dict()}
    return {name: part for name, part in parts.items() if part}
