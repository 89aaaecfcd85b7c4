"""Claims: which process works on which unit of a store, so that no two do the same one.

A claim is a byte-range lock on a file beside the store. The kernel lifts it when the process ends, however it
ends: there is nothing to expire, no clock and no process number. Locks work across the machines of an NFS
mount. Object stores have none, and neither has Windows; there everything can be claimed, and ranks rely on
their disjoint shares.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cache.errors import CacheError
from cache.files import Location, fcntl

_WHOLE_STORE = 1 << 40  # the byte that stands for the store's sizes


class Claims:
    """The claims of one process on one store; the file is made at the first one."""

    def __init__(self, store: Location) -> None:
        self._path = claims_file(store) if isinstance(store, Path) and fcntl is not None else None
        self._descriptor: int | None = None

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    @property
    def exist(self) -> bool:
        """Whether a claim keeps others away here."""
        return self._path is not None

    def take(self, number: int) -> bool:
        """Claim a unit by its number; False if another process has it. Does not wait."""
        if self._path is None:
            return True
        try:
            fcntl.lockf(self._file(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except BlockingIOError:
            return False
        return True

    def give_up(self, number: int) -> None:
        """Let others claim a unit; nothing happens if it was not claimed."""
        if self._path is not None and self._descriptor is not None:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, number)

    @contextmanager
    def whole_store(self) -> Iterator[None]:
        """Alone with the store's sizes; waits for a process that changes them."""
        if self._path is None:
            yield
            return
        fcntl.lockf(self._file(), fcntl.LOCK_EX, 1, _WHOLE_STORE)
        try:
            yield
        finally:
            fcntl.lockf(self._file(), fcntl.LOCK_UN, 1, _WHOLE_STORE)

    def _file(self) -> int:
        if self._descriptor is None:
            assert self._path is not None  # noqa: S101 - the callers have looked
            try:
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise CacheError(
                    f"{self._path}: the file for claims cannot be opened ({error.strerror}); "
                    f"make the folder writable, or choose a cache folder that can be written"
                ) from error
        return self._descriptor


def claims_file(store: Path) -> Path:
    """The file beside a store that its claims are locks on."""
    return store.with_name(f"{store.name}.lock")
