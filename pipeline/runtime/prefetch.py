"""Let a thread of its own make items ahead of their use."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import TypeVar

T = TypeVar("T")

_DONE = object()
_PATIENCE_S = 0.05  # how long a blocked maker sleeps before it looks whether anyone still wants its items


def prefetch(items: Generator[T], n: int) -> Generator[T]:
    """The items, in order, up to `n` of them made before they are asked for.

    An error of the maker is raised where its item would have come. Closing the result, or an error of its
    user, closes `items` in the thread that ran it, and waits for that.
    """
    made: Queue[tuple[object, T | BaseException | None]] = Queue(maxsize=n)
    unwanted = Event()

    def put(kind: object, item: T | BaseException | None) -> bool:
        while not unwanted.is_set():
            try:
                made.put((kind, item), timeout=_PATIENCE_S)
            except Full:
                continue
            return True
        return False

    def make() -> None:
        try:
            with closing(items):
                for item in items:
                    if not put(None, item):
                        return
            put(_DONE, None)
        except BaseException as error:  # noqa: BLE001 - raised again by the user's thread
            put(_DONE, error)

    maker = Thread(target=make, name="prefetch", daemon=True)
    maker.start()
    try:
        while True:
            kind, item = made.get()
            if kind is _DONE:
                if isinstance(item, BaseException):
                    raise item
                return
            yield item  # type: ignore[misc]
            del item
    finally:
        unwanted.set()
        while maker.is_alive():
            try:
                made.get(timeout=_PATIENCE_S)
            except Empty:
                continue
        maker.join()
