"""Produce items ahead of their use in a background thread."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import TypeVar

T = TypeVar("T")

_DONE = object()
_POLL_S = 0.05  # how often a blocked producer checks whether its items are still wanted


def prefetch(items: Generator[T], n: int) -> Generator[T]:
    """Yield the items in order, producing up to `n` of them in advance.

    An error of the producer is raised where its item would have come. Closing the result, or an error of the
    consumer, closes `items` in the producer's thread and waits for it.
    """
    ready: Queue[tuple[object, T | BaseException | None]] = Queue(maxsize=n)
    unwanted = Event()

    def put(kind: object, item: T | BaseException | None) -> bool:
        """Hand an item over when there is room; returns False if it is not wanted any more."""
        while not unwanted.is_set():
            try:
                ready.put((kind, item), timeout=_POLL_S)
            except Full:
                continue
            return True
        return False

    def produce() -> None:
        """Hand over all items, then the end or the error, from the producer's thread."""
        try:
            with closing(items):
                for item in items:
                    if not put(None, item):
                        return
            put(_DONE, None)
        except BaseException as error:  # noqa: BLE001 - raised again in the consumer's thread
            put(_DONE, error)

    producer = Thread(target=produce, name="prefetch", daemon=True)
    producer.start()
    try:
        while True:
            kind, item = ready.get()
            if kind is _DONE:
                if isinstance(item, BaseException):
                    raise item
                return
            yield item  # type: ignore[misc]
            del item
    finally:
        unwanted.set()
        while producer.is_alive():
            try:
                ready.get(timeout=_POLL_S)
            except Empty:
                continue
        producer.join()
