"""What a plan decides, and where its randomness comes from: the counter-based generator Philox4x32-10 (Salmon
et al., SC 2011), with the sample id and view as the counter and the seed as the key.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

ALGORITHM = "philox4x32-10/v1"  # enters the fingerprint: a changed draw must never pass for the same plan
# counter word 3: the purpose of a draw; the attempts of a resized crop count up from RESIZED; from 64 on they
# are pretext tasks', from 128 on operations'
FLIP, SHIFT, RESIZED, CLIP = 0, 1, 2, 32


Ids = NDArray[np.int64]  # (n,) of samples
Sizes = NDArray[np.int32]  # (n, 2): height, width; of videos (n, 3): frames, height, width
Windows = NDArray[np.int32]  # (n, 4): top, left, height, width; (n, F, 4) where each frame has its own
Flips = NDArray[np.bool_]  # (n,)
Draws = NDArray[np.uint32]  # (n, ...) random numbers, uniform over all values


@dataclass(frozen=True, slots=True)
class RowOperations:
    """What is done to each of N images after crop and flip, in the order of the columns, then the erasing.

    codes: int8 (N, K), positions in `pipeline.data.plan.operations.OPERATIONS`. values: float32 (N, K), each
    operation's parameter. boxes: int32 (N, 4), (top, left, height, width) of what becomes black; height 0:
    nothing.
    """

    codes: NDArray[np.int8]
    values: NDArray[np.float32]
    boxes: NDArray[np.int32]

    @property
    def changed(self) -> list[int]:
        """The rows with an operation besides the identity, whose code is 0, or with a box."""
        rows: list[int] = np.flatnonzero((self.codes != 0).any(axis=1) | (self.boxes[:, 2] > 0)).tolist()
        return rows


@dataclass(frozen=True, slots=True)
class PlanRows:
    """Decisions for each of N images or videos.

    ids: int64 (N,). windows: int32 (N, 4), (top, left, height, width) in image pixels; a window may
    reach outside the image, where pixels are black. flips: bool (N,), mirror left-right after the resize.
    frames: int32 (N, F), frame numbers of each video; None for images. They are cut by the row's window, or
    each by its own, windows (N, F, 4), if no row has a frame twice. operations: None where nothing follows.
    """

    ids: Ids
    windows: Windows
    flips: Flips
    frames: NDArray[np.int32] | None = None
    operations: RowOperations | None = None

    def sha256(self) -> str:
        """Hex digest of the decisions, for tests and records."""
        parts = [self.ids, self.windows, self.flips] + ([] if self.frames is None else [self.frames])
        if (changes := self.operations) is not None:
            parts += [changes.codes, changes.values, changes.boxes]
        return hashlib.sha256(b"".join(np.ascontiguousarray(p).tobytes() for p in parts)).hexdigest()


class Plan(Protocol):
    """A frozen augmentation recipe that turns (view, ids, image sizes) into `PlanRows`."""

    @property
    def side_px(self) -> int:
        """Height and width of the images or clips that the student sees."""

    def rows(self, view: int, ids: Ids, sizes: Sizes) -> PlanRows:
        """Decisions for one view of the samples `ids` (N,). `sizes` are (N, 2), (height, width), for images,
        and (N, 3), (frames, height, width), for videos.
        """

    def to_dict(self) -> dict[str, Any]:
        """Everything the decisions depend on, for the fingerprint."""


def flips_of(seed: int, ids: Ids, view: int, probability: float) -> Flips:
    """Which rows are mirrored: bool (N,)."""
    flips: Flips = draws_of(seed, ids, view, FLIP)[:, 0] < probability * 2**32
    return flips


def below(draws: Draws, bound: NDArray[Any] | int) -> NDArray[np.int64]:
    """Integers in [0, bound) from 32-bit draws, by multiply-shift (bias below bound / 2^32)."""
    product: NDArray[np.uint64] = draws.astype(np.uint64) * np.asarray(bound, dtype=np.uint64)
    return (product >> np.uint64(32)).astype(np.int64)


def draws_of(seed: int, ids: Ids, view: int, purpose: int) -> Draws:
    """Four independent uint32 draws (N, 4) per id, from Philox4x32 with ten rounds."""
    if view < 0 or seed < 0:
        raise ValueError(f"view is {view} and seed is {seed}, both must be 0 or more")
    counter = np.empty((4, len(ids)), dtype=np.uint64)
    counter[0], counter[1] = ids & 0xFFFFFFFF, ids >> 32
    counter[2], counter[3] = view, purpose
    return philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)).T


def philox4x32(counter: NDArray[np.uint64], key: tuple[int, int]) -> Draws:
    """Philox4x32-10: counter uint64 (4, N), each word below 2^32, and a key of two words; returns uint32 (4,
    N).
    """
    mask = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        left, right = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (right >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            right & mask,
            (left >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            left & mask,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3]).astype(np.uint32)
