"""One process per run: a lock file in its folder, which the kernel frees when its holder dies.

`filelock` locks a file, which works on Windows and, unlike a lock on the folder itself, over NFS.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from cache import Location

log = logging.getLogger(__name__)

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP)  # of a network mount whose server gives none
LOCK = "run.lock"  # it stays when the run has ended: to remove it would let two in


@contextmanager
def alone_in(folder: Location) -> Iterator[None]:
    """Keep other processes that call this out of a folder. Raises BlockingIOError if one is in it, and
    OSError if the folder cannot be written. An object store has no locks, which is said.
    """
    if not isinstance(folder, Path):
        log.info(f"{folder}: an object store has no locks; let no other process train this run")
        yield
        return
    lock = FileLock(folder / LOCK, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise BlockingIOError(f"{folder} is in use") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        log.warning(f"{folder}: its file system has no locks; let no other process train this run")
    try:
        yield
    finally:
        lock.release()
