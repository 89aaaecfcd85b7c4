"""Recompute some of a store's rows with the source, and compare."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cache import REPRESENTATIONS, Store, StoreIncomplete, Unit
from pipeline.data import Renderer, in_batches, open_renderer
from pipeline.runtime import Execution, render_batch_size
from pipeline.stores import Origin
from sskt.sources import FrozenSource
from sskt.topk import decode, encode

COSINE = 0.999  # a row with a lower cosine similarity does not come from this source and these pixels
SAME_TOP = 0.99  # least share of rows whose largest logit is at the same class


@dataclass(frozen=True, slots=True)
class Agreement:
    """How stored rows compare with recomputed ones; errors are per logit."""

    rows: int
    max_error: float
    mean_error: float
    min_cosine: float
    same_top: float | None  # share of rows; None for rows that are no logits
    identical: float  # share of rows with the same bits
    worst: str  # the row with the smallest cosine

    @property
    def good(self) -> bool:
        """Whether the store passes."""
        return self.min_cosine >= COSINE and (self.same_top is None or self.same_top >= SAME_TOP)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a table or `--json`."""
        return {**asdict(self), "good": self.good}


def recompute(
    store: Store, origin: Origin, frozen: FrozenSource, execution: Execution, *, n: int, seed: int
) -> Agreement:
    """Compare `n` random (view, row) pairs of the finished units with what the source computes now.

    Top-k rows are expanded to the logits of all classes at temperature 1 for the comparison. Raises
    StoreIncomplete if no unit is finished, StoreDamaged if a unit that is needed cannot be read.
    """
    blocks = [(unit.view, store.rows_of(unit.block)) for unit in store.finished_units()]
    if not blocks:
        raise StoreIncomplete(f"{store.path}: no unit is finished; run the same precompute again first")
    sizes = np.array([rows.stop - rows.start for _, rows in blocks])
    picked = np.sort(np.random.default_rng(seed).choice(sizes.sum(), size=min(n, sizes.sum()), replace=False))
    ends = np.cumsum(sizes)
    block_of = np.searchsorted(ends, picked, side="right")  # the index in `blocks` of each pick
    stored, picks, names = [], [], []
    for block in np.unique(block_of):
        view, rows = blocks[block]
        offsets = picked[block_of == block] - (ends[block] - sizes[block])
        stored.append(store.unit(Unit(view, rows.start // store.block_rows))[offsets])
        picks.append((view, rows.start + offsets))
        names += [f"view {view}, sample {store.ids[rows.start + i]}" for i in offsets]
    batch_size = render_batch_size(frozen.forward.batch_size)
    plan = origin.source_plan
    with (
        closing(open_renderer(origin.dataset, plan, execution, batch_size=batch_size)) as renderer,
        closing(_draw(renderer, picks, batch_size)) as drawn,
    ):
        columns = frozen.source.columns_of(origin.source.spec.output)
        batches = _rebatch(drawn, batch_size)
        live = torch.cat([frozen.logits(pixels)[:, columns].cpu() for pixels in batches])
    return _compare(store, np.concatenate(stored), live, names)


def _draw(
    renderer: Renderer, picks: list[tuple[int, NDArray[np.int64]]], batch_size: int
) -> Generator[torch.Tensor]:
    """Draw the images at some positions of some views."""
    for view, positions in picks:
        with closing(renderer.render(view, in_batches(positions, batch_size))) as drawn:
            yield from drawn


def _rebatch(drawn: Iterable[torch.Tensor], batch_size: int) -> Generator[torch.Tensor]:
    """Regroup images into full batches: a forward costs as much for one image as for a full batch."""
    waiting: list[torch.Tensor] = []
    for pixels in drawn:
        waiting.append(pixels)
        if sum(map(len, waiting)) >= batch_size:
            joined = torch.cat(waiting)
            yield joined[:batch_size]
            waiting = [joined[batch_size:]]
    rest = torch.cat(waiting)
    if len(rest):
        yield rest


def _compare(
    store: Store, stored: NDArray[np.float16 | np.uint16], live: torch.Tensor, names: list[str]
) -> Agreement:
    rows, no_classes = torch.from_numpy(stored), store.form.kind == REPRESENTATIONS
    if store.top_k is not None:
        live = encode(live, store.top_k)
        identical = (rows.view(torch.int16) == live.view(torch.int16)).all(dim=1)
        rows, live = decode(rows, store.n_classes, 1.0), decode(live, store.n_classes, 1.0)
    else:
        identical = (rows == live).all(dim=1)
    a, b = rows.double(), live.double()
    error, cosine = (a - b).abs(), torch.nn.functional.cosine_similarity(a, b, dim=1)
    return Agreement(
        rows=len(a),
        max_error=float(error.max()),
        mean_error=float(error.mean()),
        min_cosine=float(cosine.min()),
        same_top=None if no_classes else float((a.argmax(dim=1) == b.argmax(dim=1)).double().mean()),
        identical=float(identical.double().mean()),
        worst=names[int(cosine.argmin())],
    )
