"""Files of results, in a local folder or an object store."""

from __future__ import annotations

from cache import Location, local_path, write_durably
from sskt.errors import RunError


def write_result(path: Location, content: bytes, remedy: str = "make room or choose another --out") -> None:
    """Write a file, whole or not at all, and the local folders that it lies in. Raises RunError, with
    `remedy`, if it cannot be written, and CacheError for an object store that cannot be reached.
    """
    try:
        if folder := local_path(path.parent):
            folder.mkdir(parents=True, exist_ok=True)
        write_durably(path, content)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error}); {remedy}") from error
