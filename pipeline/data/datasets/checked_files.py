"""What was learned about a folder of pictures, kept so that every file is validated once and not once a run.

A kept fact holds for as long as its file has the same path, length and modification time, and beyond that
for any file with the same bytes. The file is an .npz without pickle; a damaged one is as good as none. Not
noticed: a file changed in place with both length and time restored.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FACTS = np.dtype(
    [
        ("bytes", "<i8"),
        ("mtime_ns", "<i8"),
        ("size", "<i4", (2,)),  # height, width
        ("content", "u1", (16,)),
        ("transcode", "?"),
        ("valid", "?"),  # decoded in full and found sound
        ("kind", "u1"),  # place in decode.FORMATS, from 1; 0: not known, kept by format 1
        ("bits", "u1"),  # that a 16-bit file's values use; 0 for others
        ("several", "?"),  # more images in it
    ]
)
_FORMAT = 2
_FIRST_FACTS = np.dtype([(name, FACTS[name]) for name in (FACTS.names or ())[:6]])
_FIRST = 1  # without the last three; what it says of files that every decoder reads alike still holds
_LONGEST_NAME = 180  # bytes, of the 255 that a file system takes
_DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    SyntaxError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)

RelativePaths = NDArray[np.bytes_]
Facts = NDArray[np.void]


def kept_file(index_dir: Path, slug: str, folder: Path) -> Path:
    """Where the facts about one folder are kept; the place of the folder is part of the name."""
    place = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:12]
    name = f"{slug}-{folder.name}"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:24]
    return index_dir / f"{name}-{place}.npz"


def read_kept(file: Path) -> tuple[RelativePaths, Facts] | None:
    """Paths (M,) and facts (M,); None if there are none, or none that can be trusted."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as data:
            paths, facts, version = data["paths"], data["facts"], int(data["format"])
    except _DAMAGE:
        return None
    if version == _FIRST and facts.dtype == _FIRST_FACTS:
        paths, facts = _of_first(paths, facts)
        version = _FORMAT
    sound = (
        version == _FORMAT and paths.dtype.kind == "S" and facts.dtype == FACTS and paths.shape == facts.shape
    )
    return (paths, facts) if sound and paths.ndim == 1 else None


def _of_first(paths: RelativePaths, facts: Facts) -> tuple[RelativePaths, Facts]:
    """Facts of format 1, without those of files that may hold more than it says."""
    alike = ~facts["transcode"]
    converted = np.zeros(int(alike.sum()), dtype=FACTS)
    for name in facts.dtype.names or ():
        converted[name] = facts[name][alike]
    return paths[alike], converted


def write_kept(file: Path, paths: RelativePaths, facts: Facts) -> None:
    """Replace the kept facts in one step, without files not found valid. Raises OSError if that fails."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.stem}.tmp-", suffix=".npz")
    try:
        with os.fdopen(descriptor, "wb") as out:
            np.savez(out, format=_FORMAT, paths=paths[facts["valid"]], facts=facts[facts["valid"]])
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def recall(kept: tuple[RelativePaths, Facts], paths: RelativePaths, facts: Facts) -> None:
    """Fill in `facts` (N,) of `paths` (N,), whose lengths and times are set, where what is kept holds."""
    old_paths, old = kept
    _, new_rows, old_rows = np.intersect1d(paths, old_paths, assume_unique=True, return_indices=True)
    same = (facts["bytes"][new_rows] == old["bytes"][old_rows]) & (
        facts["mtime_ns"][new_rows] == old["mtime_ns"][old_rows]
    )
    facts[new_rows[same]] = old[old_rows[same]]


class Known:
    """What is kept of any file, by its content: one that was moved or touched need not be decoded again."""

    def __init__(self, kept: Iterable[tuple[RelativePaths, Facts]]) -> None:
        known = [facts[facts["kind"] > 0] for _, facts in kept]
        facts = np.concatenate(known) if known else np.zeros(0, dtype=FACTS)
        keys = np.ascontiguousarray(facts["content"]).view("S16").ravel()
        order = np.argsort(keys)
        self._keys, self._facts = keys[order], facts[order]

    def fact(self, content: bytes) -> np.void | None:
        """What is kept of a file with this content, None if nothing is."""
        at = int(np.searchsorted(self._keys, np.bytes_(content)))
        found = at < len(self._keys) and self._facts["content"][at].tobytes() == content
        return self._facts[at] if found else None
