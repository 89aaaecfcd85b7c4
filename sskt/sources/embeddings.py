"""Check the vectors of a source that is asked for features, by those of a few real images.

All that reads them takes every row to mean 0 and standard deviation 1 first. What says nothing after that, or
does not fit into float16, is refused; what only looks odd gets a remark.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sskt.errors import SourceError
from sskt.sources.answers import finite_rows, returned_kind
from sskt.sources.contract import LOG_PROBABILITIES, PROBABILITIES

_HALF = torch.finfo(torch.float16)
_MIN_ROWS = 4
_SAME = 1e-4  # of the largest number: rows that differ by less are called the same


def require_embedding(outputs: Tensor, name: str) -> None:
    """Raise SourceError if nothing can be learnt from rows (n, D), as returned by a network, once they are
    kept as float16. Rows that are not finite are ignored.
    """
    rows = finite_rows(outputs)
    if not len(rows):
        return
    n, n_numbers = rows.shape
    if n_numbers == 1:
        raise SourceError(
            f"{name} returns one number per image, and an embedding is read relative to its own mean and "
            f"deviation, which leaves nothing of one; export a layer with more"
        )
    largest = float(rows.abs().max())
    if largest > _HALF.max or largest < _HALF.tiny:
        raise SourceError(
            f"{name} returns numbers of up to {largest:.3g} for {n} images tried, and rows are kept as "
            f"float16, which holds {_HALF.tiny:.2g} to {_HALF.max:.5g}; scale them before the export"
        )
    kept = rows.half().float()
    if bool((kept.amax(dim=1) == kept.amin(dim=1)).all()):
        raise SourceError(
            f"{name} returns {n_numbers} equal numbers for each of {n} images tried, which say nothing; "
            f"check what it wants to see, and which of its outputs was exported"
        )


def remarks_on_embedding(outputs: Tensor, name: str) -> list[str]:
    """Describe, in one sentence each, what is odd about rows (n, D) that `require_embedding` accepts."""
    rows = finite_rows(outputs)
    if len(rows) < _MIN_ROWS:
        return []
    remarks = []
    if float((rows - rows[:1]).abs().max()) <= _SAME * float(rows.abs().max()):
        remarks.append(f"{name} says the same of all {len(rows)} images tried: check what it wants to see")
    elif (seen := returned_kind(rows)) in (PROBABILITIES, LOG_PROBABILITIES):
        remarks.append(
            f"{name} is asked for an embedding and returns {seen}; declare that, and leave the output out of "
            f"its name, if they are its answers"
        )
    return remarks
