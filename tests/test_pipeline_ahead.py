"""A thread that makes items ahead: in order, no further than asked, errors and early ends included."""

import threading
import time

import pytest

from pipeline.runtime.prefetch import prefetch


def test_items_come_in_order_and_no_more_than_asked_are_made_ahead():
    made = []

    def items():
        for i in range(20):
            made.append(i)
            yield i

    got = []
    for item in prefetch(items(), 2):
        time.sleep(0.005)
        got.append(item)
        assert len(made) <= len(got) + 4  # two waiting, one in the hand of either side
    assert got == list(range(20))


def test_an_error_comes_after_the_items_before_it():
    def items():
        yield 1
        yield 2
        raise ValueError("broken")

    got = prefetch(items(), 5)
    assert [next(got), next(got)] == [1, 2]
    with pytest.raises(ValueError, match="broken"):
        next(got)


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_leaving_early_closes_the_maker_in_its_own_thread(taken):
    closed_in = []

    def items():
        try:
            yield from range(1000)
        finally:
            closed_in.append(threading.current_thread().name)

    got = prefetch(items(), 2)
    for _ in range(taken):
        next(got)
    got.close()
    assert closed_in == (["prefetch"] if taken else [])  # a generator that was never begun has no thread
    assert not [thread for thread in threading.enumerate() if thread.name == "ahead"]
