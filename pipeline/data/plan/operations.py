"""Operations on an image after crop and flip, decided before any pixel is read: RandAugment (Cubuk et al.,
2020), TrivialAugment in its wide space (Müller and Hutter, ICCV 2021), colour jitter, and random erasing
(Zhong et al., AAAI 2020).

Which operations with which parameters follows torchvision's transforms of these names, at their defaults; the
draws are the plan's own. `pipeline.data.render.operations` carries them out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.plan.plan import ALGORITHM, Draws, Ids, RowOperations, below, draws_of
from sskt.errors import SettingError

RANDAUGMENT, TRIVIALAUGMENT = "randaugment", "trivialaugment"
POLICIES = (RANDAUGMENT, TRIVIALAUGMENT)
MAX_OPERATIONS = 16  # of randaugment on one image
BINS = 31  # magnitudes
_POLICY_OPERATIONS = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
    "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip
_JITTERED = ("brightness", "contrast", "saturation", "hue")
OPERATIONS = (*_POLICY_OPERATIONS, *_JITTERED)  # a row's codes are positions in it
_UNSIGNED = ("Identity", "Posterize", "Solarize", "AutoContrast", "Equalize")
# counter word 3: one for each operation of a policy; factors and order of a jitter; whether something is
# erased, and the attempts at a box
_POLICY, _FACTORS, _ORDER, _ERASED, _BOX = 128, 192, 193, 200, 201
_TRIES = 10  # at a box that fits, as in torchvision
_ERASED_AREA, _ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)


@dataclass(frozen=True, slots=True)
class Operations:
    """What is done to cropped and flipped images: the policy, then the jitter, then the erasing.

    `n_ops` and `magnitude` (a bin, 0 to 30) are randaugment's. `color_jitter` are the strengths s of
    brightness, contrast, saturation and hue: factors are drawn from [max(0, 1 - s), 1 + s], hue from [-s, s]
    turns; their order is drawn too. `random_erasing` is the probability that a box becomes black.
    """

    policy: str | None = None  # one of POLICIES
    n_ops: int = 2
    magnitude: int = 9
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    random_erasing: float = 0.0

    def __post_init__(self) -> None:
        """Raises SettingError for a parameter that is out of range."""
        if self.policy not in (None, *POLICIES):
            raise SettingError("augment", f"is {self.policy!r}, expected {' or '.join(POLICIES)}")
        if not 1 <= self.n_ops <= MAX_OPERATIONS:
            raise SettingError(
                "augment", f"has {self.n_ops} operations per image, expected 1 to {MAX_OPERATIONS}"
            )
        if not 0 <= self.magnitude < BINS:
            raise SettingError("augment", f"has magnitude {self.magnitude}, expected 0 to {BINS - 1}")
        if not all(0 <= s < np.inf for s in self.color_jitter) or not self.color_jitter[3] <= 0.5:
            strengths = ",".join(f"{s:g}" for s in self.color_jitter)
            raise SettingError(
                "color_jitter", f"is {strengths}, expected strengths of 0 or more, and of hue at most 0.5"
            )
        if not 0 <= self.random_erasing <= 1:
            raise SettingError(
                "random_erasing", f"is {self.random_erasing:g}, expected a probability from 0 to 1"
            )

    def __bool__(self) -> bool:
        """Whether anything is done at all."""
        return self.policy is not None or any(self.color_jitter) or self.random_erasing > 0

    def rows(self, seed: int, view: int, ids: Ids, side_px: int) -> RowOperations:
        """The operations on one view of the samples `ids` (N,), whose images are `side_px` wide and high."""
        parts = [np.empty((2, len(ids), 0))]
        if self.policy is not None:
            spaces = spaces_of(self.policy, side_px)
            n_ops = self.n_ops if self.policy == RANDAUGMENT else 1
            parts += [self._chosen(spaces, draws_of(seed, ids, view, _POLICY + k)) for k in range(n_ops)]
        if any(self.color_jitter):
            factors, order = (draws_of(seed, ids, view, purpose) for purpose in (_FACTORS, _ORDER))
            parts.append(self._jittered(factors, order[:, 0]))
        codes, values = np.concatenate(parts, axis=2)
        boxes = np.zeros((len(ids), 4), dtype=np.int32)
        erased = np.flatnonzero(draws_of(seed, ids, view, _ERASED)[:, 0] < self.random_erasing * 2**32)
        if len(erased):
            boxes[erased] = _boxes(seed, ids[erased], view, side_px)
        return RowOperations(codes.astype(np.int8), values.astype(np.float32), boxes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, of which draws are a function."""
        fields = {**asdict(self), "color_jitter": list(self.color_jitter)}
        if self.policy != RANDAUGMENT:  # nothing depends on them
            del fields["n_ops"], fields["magnitude"]
        return {"algorithm": ALGORITHM, **fields}

    def _chosen(self, spaces: NDArray[np.float32], draws: Draws) -> NDArray[np.float64]:
        """One operation of the policy per row: codes and values (2, N, 1)."""
        codes = below(draws[:, 0], len(_POLICY_OPERATIONS))
        bins = self.magnitude if self.policy == RANDAUGMENT else below(draws[:, 1], BINS)
        signed = ~np.isin(codes, [_POLICY_OPERATIONS.index(name) for name in _UNSIGNED])
        negative = signed & (below(draws[:, 2], 2) == 1)
        values = np.where(negative, -1, 1) * spaces[codes, bins]
        return np.stack([codes, values])[:, :, None]

    def _jittered(self, factors: Draws, order: Draws) -> NDArray[np.float64]:
        """Jitters in the row's order: codes and values (2, N, 4); one of no strength is the identity."""
        strengths = np.array(self.color_jitter)
        high = np.array([1.0, 1.0, 1.0, 0.0]) + strengths
        low = np.append(np.maximum(0.0, 1.0 - strengths[:3]), -strengths[3])
        values = low + factors / 2**32 * (high - low)
        first = len(_POLICY_OPERATIONS)
        codes = np.where(strengths > 0, np.arange(first, first + 4), 0)
        orders = np.array(list(permutations(range(4))))
        drawn = orders[below(order, len(orders))]
        return np.stack([codes[drawn], np.take_along_axis(values, drawn, axis=1)])


def spaces_of(policy: str, side_px: int) -> NDArray[np.float32]:
    """The magnitude of each operation, without its sign, in each bin: (14, 31). Degrees, pixels, or what
    `pipeline.data.render.operations` says; 0 where an operation has none.
    """
    wide = policy == TRIVIALAUGMENT
    shear, turn, factor, bits = (0.99, 135.0, 0.99, 6) if wide else (0.3, 30.0, 0.9, 4)
    shift = 32.0 if wide else 150.0 / 331.0 * side_px
    most = {
        **dict.fromkeys(("ShearX", "ShearY"), shear),
        **dict.fromkeys(("TranslateX", "TranslateY"), shift),
        "Rotate": turn,
        **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), factor),
    }
    spaces = {name: _linspace(0.0, high) for name, high in most.items()}
    spaces["Posterize"] = np.rint(8 - np.arange(BINS) / ((BINS - 1) / bits)).astype(np.float32)
    spaces["Solarize"] = _linspace(1.0, 0.0)
    none = np.zeros(BINS, dtype=np.float32)
    return np.stack([spaces.get(name, none) for name in _POLICY_OPERATIONS])


def _linspace(start: float, end: float) -> NDArray[np.float32]:
    """`BINS` steps from start to end, rounded once; torch.linspace's last bit depends on the processor."""
    return np.linspace(start, end, BINS).astype(np.float32)


def _boxes(seed: int, ids: Ids, view: int, side_px: int) -> NDArray[np.int32]:
    """The boxes to erase (N, 4): top, left, height, width; without height where no attempt fits."""
    boxes = np.zeros((len(ids), 4), dtype=np.int32)
    open_rows = np.arange(len(ids))
    low, high = np.log(_ERASED_RATIO)
    for attempt in range(_TRIES):
        draws = draws_of(seed, ids[open_rows], view, _BOX + attempt)
        unit = draws[:, :2].astype(np.float64) / 2**32
        area = side_px**2 * (_ERASED_AREA[0] + unit[:, 0] * (_ERASED_AREA[1] - _ERASED_AREA[0]))
        aspect = np.exp(low + unit[:, 1] * (high - low))
        shape = np.rint(np.sqrt(np.stack([area * aspect, area / aspect], axis=1))).astype(np.int64)
        fits = (shape < side_px).all(axis=1)
        anchor = below(draws[:, 2:], np.maximum(side_px - shape, 0) + 1)
        boxes[open_rows[fits]] = np.concatenate([anchor, shape], axis=1)[fits]
        open_rows = open_rows[~fits]
        if not len(open_rows):
            break
    return boxes
