"""Claims: which process works on which unit of a store, so that no two do the same one.

A claim is a byte-range lock on a file beside the store. The kernel lifts it when the process ends, however it
ends: there is nothing to expire, no clock and no process number. Locks work across the machines of an NFS
mount. Object stores have none, and neither has Windows; there everything can be claimed, and ranks rely on
their disjoint shares.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cache.errors import CacheError
from cache.storage import Location, local_path
from cache.storage.local import fcntl

_WHOLE_STORE = 1 << 40  # the byte that stands for the store's sizes


class UnitLocks:
    """The claims of one process on one store; the file is made at the first one."""

    def __init__(self, store: Location) -> None:
        folder = local_path(store)
        self._path = claims_file(folder) if folder and fcntl is not None else None
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
        return self._path is None or self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB, number)

    def give_up(self, number: int) -> None:
        """Let others claim a unit; nothing happens if it was not claimed."""
        if self._path is not None and self._descriptor is not None:
            self._locked(fcntl.LOCK_UN, number)

    @contextmanager
    def whole_store(self) -> Iterator[None]:
        """Alone with the store's sizes; waits for a process that changes them."""
        if self._path is None:
            yield
            return
        self._locked(fcntl.LOCK_EX, _WHOLE_STORE)
        try:
            yield
        finally:
            self._locked(fcntl.LOCK_UN, _WHOLE_STORE)

    def _locked(self, how: int, number: int) -> bool:
        """Lock or unlock a byte of the file; False if another process has it."""
        try:
            fcntl.lockf(self._file(), how, 1, number)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):  # POSIX lets a file system say either
                return False
            raise CacheError(
                f"{self._path}: cannot be locked ({error.strerror or error}), and claims are locks; mount "
                f"this file system with POSIX locks, or choose a cache folder on one that has them"
            ) from error
        return True

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
