"""Files that are whole or absent: written beside their place, flushed, renamed, and the folder flushed.

Zarr's own LocalStore (3.1.6) also writes beside and renames, but never calls fsync: after a power loss a
name may stand for an empty file. "Payload first, then its entry" needs the disk's word, hence these lines.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

TEMPORARY = ".tmp-"  # part of every unfinished file's and folder's name; no reader looks at those


def temporary_sibling(path: Path) -> Path:
    """A name in the same folder that no other process will choose."""
    return path.with_name(f"{path.name}{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex[:12]}")


def write_durably(path: Path, *parts: bytes | memoryview) -> None:
    """Put the parts, one after the other, at `path`; an OSError leaves what was there before."""
    temporary = temporary_sibling(path)
    try:
        with temporary.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk."""
    if os.name == "nt":  # Windows opens no folders and keeps its names in a journal
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder`, and the folder itself, to the disk."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            with (Path(parent) / name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(parent))
