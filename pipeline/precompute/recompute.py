"""Ask the source again about some of a store's rows: are they what it says of these pixels?"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cache import Store, StoreIncomplete
from cache.unit import Unit
from pipeline.data.render import Renderer, in_batches, open_renderer
from pipeline.runtime import Execution, render_batch_size
from pipeline.stores import Origin
from sskt.sources import FrozenSource
from sskt.topk import decode, encode

COSINE = 0.999  # a row below it is not what the source says of its pixels
SAME_TOP = 0.99  # share of rows whose largest logit is at the same class


@dataclass(frozen=True, slots=True)
class Agreement:
    """Stored rows against the source's answers of now; errors are of single logits."""

    rows: int
    max_error: float
    mean_error: float
    min_cosine: float
    same_top: float  # share of rows
    identical: float  # share of rows with the same bits
    worst: str  # the row of the smallest cosine

    @property
    def good(self) -> bool:
        """Whether the store passes."""
        return self.min_cosine >= COSINE and self.same_top >= SAME_TOP

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a table or `--json`."""
        return {**asdict(self), "good": self.good}


def recompute(
    store: Store, origin: Origin, frozen: FrozenSource, execution: Execution, *, n: int, seed: int
) -> Agreement:
    """Compare `n` random (view, row) pairs of the finished units with the source's answers of now.

    Top-k rows are compared as the logits of all classes that they stand for at temperature 1. Raises
    StoreIncomplete if no unit is finished, StoreDamaged if one that is asked for cannot be read.
    """
    blocks = [(unit.view, store.rows_of(unit.block)) for unit in store.finished_units()]
    if not blocks:
        raise StoreIncomplete(f"{store.path}: no unit is finished; run the same precompute again first")
    sizes = np.array([rows.stop - rows.start for _, rows in blocks])
    picked = np.sort(np.random.default_rng(seed).choice(sizes.sum(), size=min(n, sizes.sum()), replace=False))
    ends = np.cumsum(sizes)
    where = np.searchsorted(ends, picked, side="right")
    stored, picks, names = [], [], []
    for at in np.unique(where):
        view, rows = blocks[at]
        inside = picked[where == at] - (ends[at] - sizes[at])
        stored.append(store.unit(Unit(view, rows.start // store.block_rows))[inside])
        picks.append((view, rows.start + inside))
        names += [f"view {view}, sample {store.ids[rows.start + i]}" for i in inside]
    batch = render_batch_size(frozen.forward.batch_size)
    with (
        closing(open_renderer(origin.dataset, origin.source_plan, execution, batch_size=batch)) as renderer,
        closing(_drawn(renderer, picks, batch)) as drawn,
    ):
        live = torch.cat([frozen.logits(pixels).cpu() for pixels in _filled(drawn, batch)])
    return _compare(store, np.concatenate(stored), live, names)


def _drawn(
    renderer: Renderer, picks: list[tuple[int, NDArray[np.int64]]], batch: int
) -> Generator[torch.Tensor]:
    """The pictures at some positions of some views."""
    for view, positions in picks:
        with closing(renderer.render(view, in_batches(positions, batch))) as drawn:
            yield from drawn


def _filled(drawn: Iterable[torch.Tensor], batch: int) -> Generator[torch.Tensor]:
    """The same pictures, `batch` at a time: a forward costs as much for one as for all its rows."""
    held: list[torch.Tensor] = []
    for pixels in drawn:
        held.append(pixels)
        if sum(map(len, held)) >= batch:
            together = torch.cat(held)
            yield together[:batch]
            held = [together[batch:]]
    rest = torch.cat(held)
    if len(rest):
        yield rest


def _compare(
    store: Store, stored: NDArray[np.float16 | np.uint16], live: torch.Tensor, names: list[str]
) -> Agreement:
    kept = torch.from_numpy(stored)
    if store.top_k is not None:
        live = encode(live, store.top_k)
        identical = (kept.view(torch.int16) == live.view(torch.int16)).all(dim=1)
        kept, live = (decode(rows, store.n_classes, 1.0) for rows in (kept, live))
    else:
        identical = (kept == live).all(dim=1)
    a, b = kept.double(), live.double()
    error, cosine = (a - b).abs(), torch.nn.functional.cosine_similarity(a, b, dim=1)
    return Agreement(
        rows=len(a),
        max_error=float(error.max()),
        mean_error=float(error.mean()),
        min_cosine=float(cosine.min()),
        same_top=float((a.argmax(dim=1) == b.argmax(dim=1)).double().mean()),
        identical=float(identical.double().mean()),
        worst=names[int(cosine.argmin())],
    )
