"""The answers of frame sorting (Lee et al., ICCV 2017): orders of n frames, up to reversal, since a video
played backwards is often as plausible; and the pairs of frames that its network compares.
"""

from __future__ import annotations

from itertools import permutations


def orders(n: int) -> tuple[tuple[int, ...], ...]:
    """One order of 0..n-1 for each class, n! / 2 of them: of an order and its reversal the smaller one. Which
    class has which number is ours.
    """
    return tuple(order for order in permutations(range(n)) if order <= order[::-1])


def pairs(n: int) -> tuple[tuple[int, int], ...]:
    """Every pair i < j of n frames, neighbours first, as in the released network."""
    return tuple((i, i + gap) for gap in range(1, n) for i in range(n - gap))
