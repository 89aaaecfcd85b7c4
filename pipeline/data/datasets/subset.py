"""Fixed draws of some of the samples, with equal shares of every class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.data.plan.plan import philox4x32

_KEY = (
    0x5357_4B54,
    0x5355_4253,
)  # fixed for good: the digits' test split and --limit depend on it


def draws(ids: NDArray[np.int64]) -> NDArray[np.uint64]:
    """One fixed pseudo-random number per sample id: uint64 (N,)."""
    counter = np.zeros((4, len(ids)), dtype=np.uint64)
    counter[0], counter[1] = ids & 0xFFFFFFFF, ids >> 32
    words = philox4x32(counter, _KEY).astype(np.uint64)
    combined: NDArray[np.uint64] = words[0] << np.uint64(32) | words[1]
    return combined


def rank_in_class(labels: NDArray[np.int64], keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The rank of each sample's key within its class: int64 (N,). Ties keep their order."""
    order = np.lexsort((keys, labels))
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels)) - np.repeat(starts, counts)
    return rank


def stratify(labels: NDArray[np.int64], keys: NDArray[np.uint64], n: int) -> NDArray[np.int64]:
    """Positions, ascending, of n samples with equal shares of every class up to rounding: int64 (n,).

    Each class in turn gives its sample with the smallest key, until there are n. So n samples are always
    among any larger number, and a class that runs out leaves its share to the others.
    """
    turn = np.lexsort((labels, rank_in_class(labels, keys)))
    return np.sort(turn[:n])
