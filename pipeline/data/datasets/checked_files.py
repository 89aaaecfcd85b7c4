"""What validating a folder's images found, kept so that every file is validated once, not once per run.

A fact holds as long as its file has the same path, length and modification time, and beyond that for any file
with the same bytes. The file is an .npz without pickle; a damaged one counts as none. A file changed in place
with its length and time restored goes unnoticed.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

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
        ("kind", "u1"),  # position in decode.FORMATS, from 1; 0: unknown, kept by format 1
        ("bits", "u1"),  # how many a 16-bit file's values use; 0 for other files
        ("several", "?"),  # whether it holds more images
    ]
)
_FORMAT = 2
_FIRST_FACTS = np.dtype([(name, FACTS[name]) for name in (FACTS.names or ())[:6]])
_FIRST = 1  # lacks the last three facts; the others still hold for files that every decoder reads alike
_LONGEST_NAME = 180  # bytes, of the 255 that a file system allows
DAMAGE = (  # what reading a damaged .npz raises
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


def facts_file(index_dir: Path, slug: str, folder: Path) -> Path:
    """The file of one folder's facts; the folder's place is part of its name."""
    place = hashlib.sha256(os.fsencode(str(folder.resolve()))).hexdigest()[:12]
    name = f"{slug}-{folder.name}"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:24]
    return index_dir / f"{name}-{place}.npz"


def shared_copy(file: Path) -> Path:
    """Where a folder's facts lie that another machine found, beside its own `file` of them."""
    return file.with_name(f"{file.stem}.shared.npz")


def read_facts(file: Path) -> tuple[RelativePaths, Facts] | None:
    """Read paths (M,) and facts (M,); None if there are none, or none that can be trusted."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as data:
            paths, facts, version = data["paths"], data["facts"], int(data["format"])
    except DAMAGE:
        return None
    if version == _FIRST and facts.dtype == _FIRST_FACTS:
        paths, facts = _convert_first(paths, facts)
        version = _FORMAT
    sound = (
        version == _FORMAT and paths.dtype.kind == "S" and facts.dtype == FACTS and paths.shape == facts.shape
    )
    return (paths, facts) if sound and paths.ndim == 1 else None


def _convert_first(paths: RelativePaths, facts: Facts) -> tuple[RelativePaths, Facts]:
    """Convert facts of format 1, without those of files that may hold more than format 1 says."""
    alike = ~facts["transcode"]
    converted = np.zeros(int(alike.sum()), dtype=FACTS)
    for name in facts.dtype.names or ():
        converted[name] = facts[name][alike]
    return paths[alike], converted


def write_facts(file: Path, paths: RelativePaths, facts: Facts) -> None:
    """Replace a folder's facts in one step, without files not found valid. Raises OSError if that fails."""
    write_arrays(file, format=_FORMAT, paths=paths[facts["valid"]], facts=facts[facts["valid"]])


def write_arrays(file: Path, **arrays: Any) -> None:
    """Replace an .npz in one step. Raises OSError if that fails."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.stem}.tmp-", suffix=".npz")
    try:
        with os.fdopen(descriptor, "wb") as out:
            np.savez(out, **arrays)
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def recall(kept: tuple[RelativePaths, Facts], paths: RelativePaths, facts: Facts) -> None:
    """Fill in `facts` (N,) of `paths` (N,), whose lengths and times are set, from kept ones that hold."""
    old_paths, old = kept
    _, new_rows, old_rows = np.intersect1d(paths, old_paths, assume_unique=True, return_indices=True)
    same = (facts["bytes"][new_rows] == old["bytes"][old_rows]) & (
        facts["mtime_ns"][new_rows] == old["mtime_ns"][old_rows]
    )
    facts[new_rows[same]] = old[old_rows[same]]


class KnownFacts:
    """Facts of any file by its content, so that one that was moved or touched need not be decoded again."""

    def __init__(self, kept: Iterable[tuple[RelativePaths, Facts]]) -> None:
        known = [facts[facts["kind"] > 0] for _, facts in kept]
        facts = np.concatenate(known) if known else np.zeros(0, dtype=FACTS)
        keys = np.ascontiguousarray(facts["content"]).view("S16").ravel()
        order = np.argsort(keys)
        self._keys, self._facts = keys[order], facts[order]

    def fact(self, content: bytes) -> np.void | None:
        """The facts of a file with this content; None if there are none."""
        at = int(np.searchsorted(self._keys, np.bytes_(content)))
        found = at < len(self._keys) and self._facts["content"][at].tobytes() == content
        return self._facts[at] if found else None
