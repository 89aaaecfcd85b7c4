"""Maximum mean discrepancy between the channels of a student's maps and those of a teacher's: the
representation graph's distance (Zhang and Peng, IJCAI 2018, eq. 8 and 9), term by term that of Neuron
Selectivity Transfer (Huang and Wang, 2017), where each channel's map is one sample.
"""

from __future__ import annotations

from torch import Tensor

_SMALLEST_WIDTH = 1e-6  # of sigma^2, above what float32 leaves of a distance of 0


def selectivity(maps: Tensor) -> Tensor:
    """Where each channel fires: the softmax over positions of maps, float (N, C, S). Eq. 8 has no axis."""
    return maps.softmax(dim=2)


def discrepancy(a: Tensor, b: Tensor) -> Tensor:
    """Mean K(a, a) + mean K(b, b) - 2 mean K(a, b), float (N,), of channels a, float (N, A, S), and b,
    float (N, B, S); K(x, y) = exp(-|x - y|^2 / (2 sigma^2)). Biased, as printed, so at least 0.

    sigma^2 is the mean of |a - b|^2 over the batch and at least 1e-6, and carries no gradient; the paper
    gives no value. Under several processes the mean is over each one's part of the batch.
    """
    return discrepancies(a, [b])[0]


def discrepancies(a: Tensor, others: list[Tensor]) -> list[Tensor]:
    """`discrepancy` of `a` from each of `others`."""
    within_a, found = _squared_distances(a, a), []
    for b in others:
        between = _squared_distances(a, b)
        scale = -0.5 / between.detach().mean().clamp(min=_SMALLEST_WIDTH)
        parts = [(d * scale).exp().mean(dim=(1, 2)) for d in (within_a, _squared_distances(b, b), between)]
        found.append(parts[0] + parts[1] - 2 * parts[2])
    return found


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j|^2, float (N, A, B). Its gradient is finite where two channels are equal, unlike that of a
    distance.
    """
    squares = a.square().sum(dim=2)[:, :, None] + b.square().sum(dim=2)[:, None]
    return (squares - 2 * a @ b.transpose(1, 2)).clamp(min=0)
