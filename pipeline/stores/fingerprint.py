"""A store's fingerprint, everything that its logits depend on, and the probe check that a renderer still
draws the same pixels (docs/method.md, promise 5).

A store serves a run when the source, the input map f_s, the plan and the target agree field by field. A run
on a subset of a store's samples is served too; then each of its images must be the one that the store's row
was made from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cache import Store, StoreMismatch
from pipeline.data import (
    CentreClip,
    CornerClip,
    Dataset,
    Pixels,
    Plan,
    Positions,
    Renderer,
    geometry_of,
    pick_frames,
)
from sskt.errors import RunError
from sskt.sources import CONVERTED, LOGITS_OUTPUT, MAP, InputMap, SourceSpec, output_kind, row_shape

PROBE_SAMPLES = 4
PROBE_TOLERANCE = 1.0  # grey levels: the mean absolute difference allowed between two renderers


def source_identity(spec: SourceSpec, weights_sha256: str, n_classes: int) -> dict[str, Any]:
    """The frozen network. Eval mode is part of it, since batch statistics would make a row depend on its
    neighbours. So is what it returns, if that is converted to logits, the stored output, if it is not the
    logits, and whatever else its kind says that rows depend on.
    """
    output: dict[str, Any] = {"output": spec.output} if spec.output != LOGITS_OUTPUT else {}
    if output_kind(spec.output) == MAP:
        channels, grid, _ = row_shape(spec.output, n_classes)
        output["map"] = {"channels": channels, "grid": grid, "pool": "adaptive-average"}
    converted = {"returns": spec.returns} if spec.returns in CONVERTED else {}
    return {
        "name": spec.name,
        "architecture": spec.architecture,
        "n_classes": n_classes,
        "weights_sha256": weights_sha256,
        "mode": "eval",
        **converted,
        **output,
        **dict(spec.identity),
    }


def target_identity(dataset: Dataset) -> dict[str, Any]:
    """The ordered samples, their contents, and the class map."""
    return {
        "name": dataset.target,
        "split": dataset.split,
        "n_samples": len(dataset),
        "contents_sha256": dataset.content_sha256,
        "class_names_sha256": hashlib.sha256(
            "\n".join(dataset.classes).encode("utf-8", "surrogateescape")
        ).hexdigest(),
        "labels_sha256": hashlib.sha256(dataset.truth_bytes).hexdigest(),
    }


def identity(
    source: dict[str, Any], input_map: InputMap, plan: Plan, dataset: Dataset, *, top_k: int | None
) -> dict[str, Any]:
    """The whole fingerprint: nested plain data, compared field by field; `top_k` is None for all logits."""
    fields = {
        "source": source,
        "input": input_map.to_dict(),
        "plan": plan.to_dict(),
        "target": target_identity(dataset),
    }
    return fields if top_k is None else {**fields, "logits": {"form": "top-k", "k": top_k}}


def source_plan(input_map: InputMap, plan: Plan) -> Plan:
    """The plan as rendered for a source: images as planned; for clips, only the frames that it sees."""
    if input_map.frames is None:
        return plan
    if not isinstance(geometry_of(plan), CornerClip | CentreClip):
        raise RunError(f"{type(plan).__name__} is a plan for images, {input_map.frames.kind} is for clips")
    return pick_frames(plan, input_map.frames.picks)


def check_probe(store: Store, dataset: Dataset, renderer: Renderer) -> None:
    """Draw the store's probe images again and compare them with the pixels that its source saw.

    Raises StoreMismatch if the mean absolute difference exceeds one grey level in any image: then this
    machine's renderer does not show the student what the source saw.
    """
    positions = np.flatnonzero(np.isin(dataset.ids, store.probe_ids))
    if not len(positions):
        return
    drawn = probe_pixels(renderer, positions)
    rows = [int(np.flatnonzero(store.probe_ids == dataset.ids[p])[0]) for p in positions]
    error = (
        np.abs(drawn.astype(np.int16) - store.probe[rows].astype(np.int16))
        .reshape(len(drawn), -1)
        .mean(axis=1)
    )
    worst = int(error.argmax())
    if error[worst] > PROBE_TOLERANCE:
        raise StoreMismatch(
            f"{store.path}: the probe picture of sample {dataset.ids[positions[worst]]} was rendered by "
            f"{store.manifest.made_by.get('renderer')} and differs from this run's {renderer.name} by "
            f"{error[worst]:.1f} grey levels, expected at most {PROBE_TOLERANCE}; use the renderer that made "
            f"the store, or precompute again"
        )


def probe_pixels(renderer: Renderer, positions: Sequence[int] | Positions) -> Pixels:
    """Render view 0 of a few samples: uint8 (P, 3, side, side), for clips (P, 3, F, side, side)."""
    batches = [np.array([position]) for position in positions]
    pixels: Pixels = torch.cat([batch.cpu() for batch in renderer.render(0, batches)]).numpy()
    return pixels
