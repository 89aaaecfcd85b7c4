"""Try a source on a few real images of the target, rendered as it will see them, before a store is created
or a live source teaches.
"""

from __future__ import annotations

import logging

import numpy as np
import torch

from pipeline.data import Dataset, Positions, Renderer
from sskt.sources import (
    LOGITS_OUTPUT,
    FrozenSource,
    remarks_on,
    remarks_on_embedding,
    require_embedding,
    require_known_kind,
)

log = logging.getLogger(__name__)

TRIAL_IMAGES = 32


def trial_positions(dataset: Dataset, n: int = TRIAL_IMAGES) -> Positions:
    """Sorted positions of at most `n` samples, spread over the classes; labelled ones, if there are any."""
    known = dataset.labelled if dataset.is_labelled.any() else np.arange(len(dataset))
    by_class = known[np.argsort(dataset.labels[known], kind="stable")]
    spread = np.linspace(0, len(known) - 1, min(n, len(known))).round().astype(np.int64)
    return np.sort(by_class[spread])


def try_source(frozen: FrozenSource, dataset: Dataset, renderer: Renderer) -> None:
    """Run a source on real images in view 0 and check its outputs; log anything odd.

    `renderer` draws what the source sees, one sample at a time. Raises SourceError for outputs that
    contradict its contract, or that nothing can be learnt from, NonFiniteLogitsError if none is finite.
    """
    batches = [np.array([position]) for position in trial_positions(dataset)]
    outputs = frozen.outputs(torch.cat([batch.cpu() for batch in renderer.render(0, batches)]))
    for part, columns in frozen.source.with_columns():
        spec, rows = part.spec, outputs[:, columns]
        name, declared = spec.name, spec.contract.returns
        if not torch.isfinite(rows).all(dim=1).any():
            frozen.require_finite_output(rows, part)
        if spec.output == LOGITS_OUTPUT:
            require_known_kind(rows, declared, name)
            remarks = remarks_on(rows, declared, name)
        else:
            require_embedding(rows, name)
            remarks = remarks_on_embedding(rows, name)
        for remark in remarks:
            log.warning(remark)
