"""The format of a store's rows: all logits, the top k and a summary of the rest, or a representation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.errors import CacheError

LOGITS, REPRESENTATIONS = "logits", "representations"
ROW_ARRAYS = (LOGITS, "topk", REPRESENTATIONS)  # every name that a store's array of rows may have
TAIL_NUMBERS = 4  # float16 numbers per top-k row about the other classes, opaque to this package
_MOST_CLASSES = 1 << 16  # an index is a uint16
_F16_INF = np.uint16(0x7C00)  # bit patterns from this value up, ignoring the sign, are inf and NaN

Rows = NDArray[np.float16] | NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class RowFormat:
    """Rows of K float16 logits (`top_k` None), or of 2k + 4 uint16: the bit patterns of the k largest logits,
    largest first, their k class indices, and the bit patterns of four float16 numbers about the tail.

    Of kind REPRESENTATIONS: rows of K float16 numbers that are no classes, such as an embedding.
    """

    n_classes: int  # K
    top_k: int | None = None
    kind: str = LOGITS  # or REPRESENTATIONS

    def __post_init__(self) -> None:
        k, n = self.top_k, self.n_classes
        if n < 1:
            raise CacheError(f"a store has n_classes={n}, expected at least 1")
        if k is not None and self.kind != LOGITS:
            raise CacheError(
                f"a store of {self.kind} cannot keep the top {k}: they have no classes; keep all numbers"
            )
        if k is not None and not 1 <= k < n <= _MOST_CLASSES:
            raise CacheError(
                f"a store of the top {k} of {n} classes cannot be made, expected 1 <= k < classes <= "
                f"{_MOST_CLASSES}; keep all logits"
            )

    @property
    def array(self) -> str:
        """The name of the store's array of rows."""
        return self.kind if self.top_k is None else "topk"

    @property
    def width(self) -> int:
        """Numbers per row."""
        return self.n_classes if self.top_k is None else 2 * self.top_k + TAIL_NUMBERS

    @property
    def dtype(self) -> np.dtype[Any]:
        """float16 or uint16; two bytes either way."""
        return np.dtype(np.float16 if self.top_k is None else np.uint16)

    @property
    def fill(self) -> float:
        """The value that pads a short block."""
        return float("nan") if self.top_k is None else 0

    def n_unsound(self, rows: Rows) -> int:
        """The number of rows with an inf, a NaN, or an index of no class."""
        if self.top_k is None:
            return _n_non_finite(rows.view(np.uint16))
        k, bits = self.top_k, rows.view(np.uint16)
        numbers = np.concatenate([bits[:, :k], bits[:, 2 * k :]], axis=1) & np.uint16(0x7FFF)
        bad = (numbers >= _F16_INF).any(axis=1) | (bits[:, k : 2 * k] >= self.n_classes).any(axis=1)
        return int(bad.sum())


def _n_non_finite(bits: NDArray[np.uint16]) -> int:
    """The number of rows with an inf or NaN, by bit pattern: 15 times faster than numpy's isfinite."""
    magnitudes = bits & np.uint16(0x7FFF)
    if magnitudes.max(initial=0) < _F16_INF:
        return 0
    return int((magnitudes >= _F16_INF).any(axis=1).sum())
