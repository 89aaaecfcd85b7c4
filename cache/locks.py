"""Claims: which process works on which unit of a store, so that no two compute the same one.

A claim is a byte-range lock on a file beside the store. The kernel releases it when the process ends, however
it ends, so there are no timeouts, clocks or process ids. Locks work across the machines of an NFS mount.
Object stores and Windows have none; there every claim succeeds, and ranks rely on their disjoint shares.
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

_WHOLE_STORE = 1 << 40  # the byte whose lock guards the store's sizes


class UnitLocks:
    """The claims of one process on one store; the lock file is created by the first one."""

    def __init__(self, store: Location) -> None:
        folder = local_path(store)
        self._path = claims_file(folder) if folder and fcntl is not None else None
        self._descriptor: int | None = None

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    @property
    def exist(self) -> bool:
        """Whether a claim excludes other processes."""
        return self._path is not None

    def take(self, number: int) -> bool:
        """Claim a unit by its number without waiting; False if another process has it."""
        return self._path is None or self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB, number)

    def give_up(self, number: int) -> None:
        """Release a unit for others to claim; does nothing if it was not claimed."""
        if self._path is not None and self._descriptor is not None:
            self._locked(fcntl.LOCK_UN, number)

    @contextmanager
    def whole_store(self) -> Iterator[None]:
        """Exclusive access to the store's sizes; waits for a process that is changing them."""
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
            if error.errno in (errno.EACCES, errno.EAGAIN):  # POSIX allows either
                return False
            raise CacheError(
                f"{self._path}: cannot be locked ({error.strerror or error}), and claims are locks; mount "
                f"this file system with POSIX locks, or choose a cache folder on one that has them"
            ) from error
        return True

    def _file(self) -> int:
        if self._descriptor is None:
            assert self._path is not None  # noqa: S101 - callers have checked
            try:
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise CacheError(
                    f"{self._path}: the file for claims cannot be opened ({error.strerror}); "
                    f"make the folder writable, or choose a cache folder that can be written"
                ) from error
        return self._descriptor


def claims_file(store: Path) -> Path:
    """The lock file beside a store."""
    return store.with_name(f"{store.name}.lock")
