"""The lock of a store's sizes, which no two processes or threads may change at once.

It is `flock` on a file beside the store, which the kernel lifts when the process ends, however it ends. It
works across the machines of an NFS mount; object stores and Windows have none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cache.errors import CacheError
from cache.storage import Location, local_path
from cache.storage.local import fcntl


@contextmanager
def size_lock(store: Location) -> Iterator[None]:
    """Exclusive access to a store's sizes; waits for whoever is changing them. Raises CacheError if the lock
    file cannot be opened or locked.
    """
    folder = local_path(store)
    if folder is None or fcntl is None:
        yield
        return
    path = lock_file(folder)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise CacheError(
            f"{path}: the lock file cannot be opened ({error.strerror}); "
            f"make the folder writable, or choose a cache folder that can be written"
        ) from error
    try:
        _lock(path, descriptor)
        yield
    finally:
        os.close(descriptor)  # which lifts the lock


def _lock(path: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        raise CacheError(
            f"{path}: cannot be locked ({error.strerror or error}); mount this file system with locks, "
            f"or choose a cache folder on one that has them"
        ) from error


def lock_file(store: Path) -> Path:
    """The lock file beside a store."""
    return store.with_name(f"{store.name}.lock")
