"""The augmentation plan: every random decision about a picture, made before any pixel is read (DESIGN
promise 1).

`plan.rows(view, ids, sizes)` is a pure function: the same (seed, plan, view, id, picture size) gives the same
crop window and flip whatever the order, batch size, rank, worker or start epoch. All randomness comes from
the counter-based generator Philox4x32-10 (Salmon et al., SC 2011), with the sample id and view as the counter
and the seed as the key. Epoch e of training on V cached views uses view e mod V; truly random augmentation is
the same plan with view = e.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sskt.errors import TargetError

ALGORITHM = "philox4x32-10/v1"  # enters the fingerprint: a changed draw must never pass for the same plan
_TRIES = 10  # random-resized-crop: draws before the centre fallback, as torchvision does
_FLIP, _SHIFT, _RESIZED = 0, 1, 2  # counter word 3: what a draw is for; the tries of a crop follow _RESIZED


@dataclass(frozen=True, slots=True)
class Rows:
    """What to do with each of N pictures.

    ids: int64 (N,). windows: int32 (N, 4), (top, left, height, width) in picture pixels; a window may
    reach outside the picture, where pixels are black. flips: bool (N,), mirror left-right after the resize.
    """

    ids: NDArray[np.int64]
    windows: NDArray[np.int32]
    flips: NDArray[np.bool_]

    def sha256(self) -> str:
        """Hex digest of the decisions, for tests and records."""
        parts = (self.ids, self.windows, self.flips)
        return hashlib.sha256(b"".join(np.ascontiguousarray(p).tobytes() for p in parts)).hexdigest()


class Plan(Protocol):
    """A frozen recipe of augmentation that turns (view, ids, picture sizes) into `Rows`."""

    @property
    def side_px(self) -> int:
        """Height and width of the pictures that the student sees."""

    def rows(self, view: int, ids: NDArray[np.int64], sizes: NDArray[np.int32]) -> Rows:
        """Decisions for one view of the samples `ids` (N,), whose pictures measure `sizes` (N, 2) as
        (height, width).
        """

    def to_dict(self) -> dict[str, Any]:
        """Everything that the decisions depend on, for the fingerprint."""


@dataclass(frozen=True, slots=True)
class PadCropFlip:
    """Shift by up to `pad` pixels with black borders, then flip: CIFAR and STL10 (METHOD.md section 1).

    The window has the picture's own size; pictures that are not `side_px` wide are resized to it afterwards.
    """

    side_px: int
    seed: int = 0
    pad: int = 4
    flip: float = 0.5

    def rows(self, view: int, ids: NDArray[np.int64], sizes: NDArray[np.int32]) -> Rows:
        """See `Plan.rows`. Raises TargetError for an oblong picture, which a resize would distort."""
        oblong = np.flatnonzero(sizes[:, 0] != sizes[:, 1])
        if len(oblong):
            height, width = sizes[oblong[0]]
            raise TargetError(
                f"sample {ids[oblong[0]]}: the picture is {height} x {width}, the pad-crop-flip plan expects "
                f"square ones; use --plan random-resized-crop-flip"
            )
        draws = _philox(self.seed, ids, view, _SHIFT)
        shifts = _below(draws[:, :2], 2 * self.pad + 1) - self.pad
        windows = np.concatenate([shifts, sizes], axis=1).astype(np.int32)
        return Rows(ids, windows, _flips(self.seed, ids, view, self.flip))

    def to_dict(self) -> dict[str, Any]:
        """See `Plan.to_dict`."""
        return {"kind": "pad-crop-flip", "algorithm": ALGORITHM, **asdict(self)}


@dataclass(frozen=True, slots=True)
class RandomResizedCropFlip:
    """A random area and aspect ratio, resized to `side_px`, then flip: the ImageNet recipe, as torchvision
    defines it.
    """

    side_px: int
    seed: int = 0
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def rows(self, view: int, ids: NDArray[np.int64], sizes: NDArray[np.int32]) -> Rows:
        """See `Plan.rows`."""
        windows = self._fallback(sizes)
        open_rows = np.arange(len(ids))
        for attempt in range(_TRIES):
            draws = _philox(self.seed, ids[open_rows], view, _RESIZED + attempt)
            found, fits = self._try(draws, sizes[open_rows])
            windows[open_rows[fits]] = found[fits]
            open_rows = open_rows[~fits]
            if not len(open_rows):
                break
        return Rows(ids, windows, _flips(self.seed, ids, view, self.flip))

    def to_dict(self) -> dict[str, Any]:
        """See `Plan.to_dict`."""
        fields = {**asdict(self), "scale": list(self.scale), "ratio": list(self.ratio)}
        return {"kind": "random-resized-crop-flip", "algorithm": ALGORITHM, **fields}

    def _try(
        self, draws: NDArray[np.uint32], sizes: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """One draw per row: windows (N, 4), and which of them lie inside their picture (N,)."""
        unit = draws.astype(np.float64) / 2**32
        low, high = np.log(self.ratio)
        area = sizes.prod(axis=1, dtype=np.int64) * (
            self.scale[0] + unit[:, 0] * (self.scale[1] - self.scale[0])
        )
        aspect = np.exp(low + unit[:, 1] * (high - low))
        shape = np.rint(np.sqrt(np.stack([area / aspect, area * aspect], axis=1))).astype(np.int64)
        fits = ((shape > 0) & (shape <= sizes)).all(axis=1)
        room = np.maximum(sizes - shape, 0) + 1
        anchor = _below(draws[:, 2:], room)
        return np.concatenate([anchor, shape], axis=1).astype(np.int32), fits

    def _fallback(self, sizes: NDArray[np.int32]) -> NDArray[np.int32]:
        """The largest centred window (N, 4) whose aspect ratio is allowed."""
        height, width = sizes.astype(np.float64).T
        shape = np.stack(
            [
                np.minimum(height, np.rint(width / self.ratio[0])),
                np.minimum(width, np.rint(height * self.ratio[1])),
            ],
            axis=1,
        ).astype(np.int64)
        return np.concatenate([(sizes - shape) // 2, shape], axis=1).astype(np.int32)


@dataclass(frozen=True, slots=True)
class Centre:
    """The evaluation view: the central square, `side_px` / `short_px` of the short side, resized to
    `side_px`.

    It is Resize(short_px) then CenterCrop(side_px) in one step; the same for every view.
    """

    side_px: int
    short_px: int

    def rows(self, view: int, ids: NDArray[np.int64], sizes: NDArray[np.int32]) -> Rows:  # noqa: ARG002
        """See `Plan.rows`."""
        crop = np.rint(sizes.min(axis=1) * (self.side_px / self.short_px)).astype(np.int32).clip(1)
        shape = np.stack([crop, crop], axis=1)
        windows = np.concatenate([(sizes - shape) // 2, shape], axis=1).astype(np.int32)
        return Rows(ids, windows, np.zeros(len(ids), dtype=np.bool_))

    def to_dict(self) -> dict[str, Any]:
        """See `Plan.to_dict`."""
        return {"kind": "centre", **asdict(self)}


def plan_from(fields: dict[str, Any], where: str) -> Plan:
    """The plan whose `to_dict` gave `fields`; TargetError, starting with `where`, if there is none."""
    kinds = {
        "pad-crop-flip": PadCropFlip,
        "random-resized-crop-flip": RandomResizedCropFlip,
        "centre": Centre,
    }
    own = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    kind, algorithm = own.pop("kind", None), own.pop("algorithm", ALGORITHM)
    if kind not in kinds or algorithm != ALGORITHM:
        raise TargetError(
            f"{where}: its plan is {kind} by {algorithm}, expected one of {', '.join(kinds)} by {ALGORITHM}; "
            f"use the version of the program that made it"
        )
    plan: Plan = kinds[kind](**own)
    return plan


def _flips(seed: int, ids: NDArray[np.int64], view: int, probability: float) -> NDArray[np.bool_]:
    """Which rows are mirrored: bool (N,)."""
    flips: NDArray[np.bool_] = _philox(seed, ids, view, _FLIP)[:, 0] < probability * 2**32
    return flips


def _below(draws: NDArray[np.uint32], bound: NDArray[Any] | int) -> NDArray[np.int64]:
    """Integers in [0, bound) from 32-bit draws, by multiply-shift (bias below bound / 2^32)."""
    product: NDArray[np.uint64] = draws.astype(np.uint64) * np.asarray(bound, dtype=np.uint64)
    return (product >> np.uint64(32)).astype(np.int64)


def _philox(seed: int, ids: NDArray[np.int64], view: int, purpose: int) -> NDArray[np.uint32]:
    """Four independent uint32 draws (N, 4) for each id, from Philox4x32 with ten rounds."""
    if view < 0 or seed < 0:
        raise ValueError(f"view is {view} and seed is {seed}, both must be 0 or more")
    counter = np.empty((4, len(ids)), dtype=np.uint64)
    counter[0], counter[1] = ids & 0xFFFFFFFF, ids >> 32
    counter[2], counter[3] = view, purpose
    return philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)).T


def philox4x32(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint32]:
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
