"""Validate images: decode every file once, except those known from an earlier run or by the same bytes."""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from pipeline.data.datasets.checked_files import (
    Facts,
    KnownFacts,
    RelativePaths,
    read_facts,
    recall,
    shared_copy,
    write_facts,
)
from pipeline.data.datasets.dataset import Positions
from pipeline.data.datasets.decode import FORMATS, content_of, inspect
from pipeline.data.datasets.images import EncodedImages
from pipeline.runtime import Progress
from sskt.errors import UnreadableError

KINDS = tuple(FORMATS)
_PER_JOB = 64
_COMPARED = 64  # images that are read before another machine's facts are believed


def check_images(
    images: EncodedImages, facts: Facts, bad: dict[int, str], file: Path, notes: list[str], *, what: str
) -> dict[int, str]:
    """Fill in the facts of images, from `file` or by decoding, and keep them there.

    bad: unusable rows, and why; returned with those that decoding adds. notes: receives what the user should
    know. what: the name of these images in the progress bar.
    """
    paths = images.paths
    kept = read_facts(file)
    if kept is None and file.exists():
        notes.append(f"{file}: the kept index was damaged or of another version, and was built again")
    elif kept is not None:
        recall(kept, paths, facts)
    else:
        _recall_shared(images, facts, file, notes)
    unknown = np.array([row for row in np.flatnonzero(~facts["valid"]) if row not in bad], dtype=np.int64)
    try:
        known = _read_known(file) if len(unknown) else KnownFacts(())
        return bad | _check_all(images, facts, unknown, known, what)
    finally:  # also after Ctrl-C, so that no file is decoded twice
        if len(unknown) or kept is None or len(kept[0]) != len(paths):
            _write(paths, facts, file, notes)


def _recall_shared(images: EncodedImages, facts: Facts, file: Path, notes: list[str]) -> None:
    """Fill in the facts that another machine found of files with these paths, lengths and times, unless one
    of a few that are read here has other contents.
    """
    shared = read_facts(shared_copy(file))
    if shared is None:
        return
    found = facts.copy()
    recall(shared, images.paths, found)
    rows = np.flatnonzero(found["valid"] & ~facts["valid"])
    if not len(rows):
        return
    some = rows[np.unique(np.linspace(0, len(rows) - 1, _COMPARED).round().astype(np.int64))]
    same = 0
    for row in some:
        try:
            same += content_of(images.read(int(row))) == found["content"][row].tobytes()
        except (UnreadableError, OSError):
            continue
    if same == len(some):
        facts[rows] = found[rows]
        text = f"{len(some):,} of them were read and are the same"
    else:
        text = f"but {len(some) - same:,} of {len(some):,} that were read differ here, so all are read"
    notes.append(f"{shared_copy(file)}: another machine has checked {len(rows):,} of these images; {text}")


def check_unkept(images: EncodedImages, facts: Facts, rows: Positions) -> dict[int, str]:
    """Fill in the facts of the images `rows` by decoding them; nothing is kept. Returns the unusable rows,
    and why.
    """
    return _check_all(images, facts, rows, KnownFacts(()), "files")


def _read_known(file: Path) -> KnownFacts:
    """The facts of all indexes kept beside this folder's, its own included."""
    kept = (read_facts(path) for path in sorted(file.parent.glob("*.npz")))
    return KnownFacts(each for each in kept if each is not None)


def _write(paths: RelativePaths, facts: Facts, file: Path, notes: list[str]) -> None:
    try:
        write_facts(file, paths, facts)
    except OSError as error:
        reason = error.strerror or str(error)
        notes.append(
            f"{file.parent}: the index cannot be kept there ({reason}), "
            f"so each run validates every picture again; allow writing there"
        )


def _check_all(
    images: EncodedImages, facts: Facts, rows: Positions, known: KnownFacts, what: str
) -> dict[int, str]:
    """Decode the images `rows` of `what`, except those whose content is `known`, and fill in their facts;
    returns the bad ones with the reason.
    """
    bad: dict[int, str] = {}
    jobs = [rows[start : start + _PER_JOB] for start in range(0, len(rows), _PER_JOB)]
    if not jobs:
        return bad
    pool = ThreadPoolExecutor(min(32, os.cpu_count() or 1))
    with warnings.catch_warnings(), Progress(f"checking {what}", total=len(rows)) as progress:
        warnings.simplefilter("ignore")  # Pillow's, about odd metadata; `inspect` checks size limits itself
        try:
            lengths = {pool.submit(_check_some, images, facts, job, known): len(job) for job in jobs}
            for done in as_completed(lengths):
                bad.update(done.result())
                progress.advance(lengths[done])
        finally:
            pool.shutdown(cancel_futures=True)
    return bad


def _check_some(images: EncodedImages, facts: Facts, rows: Positions, known: KnownFacts) -> dict[int, str]:
    bad = {}
    for row in rows:
        fact = facts[row]
        try:
            encoded = images.read(int(row))
            same = known.fact(content_of(encoded))
            seen = inspect(encoded) if same is None else None
        except UnreadableError as error:
            bad[int(row)] = str(error)
            continue
        except OSError as error:
            bad[int(row)] = error.strerror or str(error)
            continue
        if seen is not None:
            fact["size"], fact["transcode"] = (seen.height, seen.width), seen.transcode
            fact["content"] = np.frombuffer(seen.content, dtype=np.uint8)
            fact["kind"], fact["bits"], fact["several"] = 1 + KINDS.index(seen.kind), seen.bits, seen.several
        elif same is not None:
            for name in ("size", "transcode", "content", "kind", "bits", "several"):
                fact[name] = same[name]
        fact["valid"] = True
    return bad
