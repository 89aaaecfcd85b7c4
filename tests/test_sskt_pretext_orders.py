"""The orders that frame sorting tells apart, against a plain listing and the released table."""

from itertools import combinations, permutations

import pytest

from sskt.methods.pretext.orders import orders, pairs

# the 12 tuples of the released code's table, frames counted from 1
RELEASED = ["1234", "1324", "1342", "1243", "1423", "1432", "2134", "2143", "2314", "3124", "3142", "3214"]


@pytest.mark.parametrize(("n", "n_classes"), [(3, 3), (4, 12), (5, 60)])
def test_every_order_or_its_reversal_is_a_class_and_never_both(n, n_classes):
    found = orders(n)
    assert len(found) == n_classes
    both = {order[::step] for order in found for step in (1, -1)}
    assert both == set(permutations(range(n)))
    assert len(both) == 2 * n_classes


def test_the_released_table_has_the_same_classes():
    def of_released(text):
        order = tuple(int(digit) - 1 for digit in text)
        return min(order, order[::-1])

    assert sorted(map(of_released, RELEASED)) == sorted(orders(4))


def test_pairs_are_compared_in_the_released_order():
    assert pairs(4) == ((0, 1), (1, 2), (2, 3), (0, 2), (1, 3), (0, 3))
    assert sorted(pairs(5)) == list(combinations(range(5), 2))
