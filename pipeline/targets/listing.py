"""The pictures below one folder, listed and each validated by a full decode; what is known from an earlier
run is not redone.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG

import numpy as np
from numpy.typing import NDArray

from pipeline.progress import Progress
from pipeline.targets.decode import UnreadableError, inspect
from pipeline.targets.index import FilePictures, TargetIndex
from pipeline.targets.kept import FACTS, Facts, Paths, kept_file, read_kept, recall, write_kept
from pipeline.targets.spec import TargetSpec
from sskt.errors import TargetError

_EXTENSIONS = (".jpg", ".jpeg", ".png")
_NAMED = 5  # bad files that an error names
_PER_JOB = 64

_Found = tuple[bytes, os.stat_result | None]  # relative path; None: no file behind it


@dataclass(slots=True)
class Listing:
    """The pictures below a folder in order of their paths, and notes for the user.

    paths: bytes (N,), relative, first component the class folder. facts: `kept.FACTS` (N,), all valid.
    """

    root: Path
    paths: Paths
    facts: Facts
    notes: list[str] = field(default_factory=list)


def list_pictures(root: Path, *, slug: str, index_dir: Path) -> Listing:
    """Every .jpg, .jpeg and .png (any case) below the class folders of `root`, sound ones only.

    Names that start with a dot and other extensions are ignored, and counted in the notes. Raises TargetError
    that names what cannot be decoded, and for a class folder without pictures.
    """
    found, ignored = _walk(root)
    listing, gone = _listed(root, found)
    _refuse_empty_classes(root, listing.paths)
    if ignored:
        kinds = ", ".join(f"{n} {suffix}" for suffix, n in ignored.most_common(4))
        listing.notes.append(
            f"{root}: {ignored.total()} files ignored ({kinds}), only .jpg, .jpeg and .png are read"
        )
    _validate(listing, gone, kept_file(index_dir, slug, root))
    return listing


def list_named(root: Path, paths: list[bytes], *, slug: str, index_dir: Path) -> Listing:
    """The pictures at `paths` below `root`, in this order; see `list_pictures`.

    Raises TargetError that names what is missing or cannot be decoded, and for a path that comes twice.
    """
    twice = [path for path, n in Counter(paths).items() if n > 1]
    if twice:
        raise TargetError(f"{root}: {os.fsdecode(twice[0])} is listed twice; restore the official list")
    found: list[_Found] = []
    for path in paths:
        try:
            found.append((path, (root / os.fsdecode(path)).stat()))
        except OSError:
            found.append((path, None))
    listing, gone = _listed(root, found)
    _validate(listing, gone, kept_file(index_dir, slug, root))
    return listing


def index_of(
    listing: Listing,
    spec: TargetSpec,
    split: str,
    classes: tuple[str, ...],
    labels: NDArray[np.int64],
    presence: NDArray[np.int8] | None = None,
) -> TargetIndex:
    """A listing with its labels, int64 (N,), as an index; ids are places in the listing."""
    return TargetIndex(
        target=spec.name,
        split=split,
        kind="files",
        classes=classes,
        ids=np.arange(len(labels), dtype=np.int64),
        labels=labels,
        sizes=np.ascontiguousarray(listing.facts["size"]),
        contents=np.ascontiguousarray(listing.facts["content"]),
        access=FilePictures(listing.root, listing.paths, np.ascontiguousarray(listing.facts["transcode"])),
        notes=tuple(listing.notes),
        presence=presence,
    )


def class_folders(root: Path) -> list[str]:
    """Sorted names of the folders directly in `root` without a leading dot; none if it is no folder."""
    try:
        with os.scandir(root) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise TargetError(f"{root}: cannot be listed ({error.strerror or error}); allow reading it") from None


def _listed(root: Path, found: list[_Found]) -> tuple[Listing, dict[int, str]]:
    """A listing that is not validated yet, and its rows that are no files, with the reason."""
    paths = np.array([path for path, _ in found], dtype=np.bytes_)
    listing = Listing(root, paths, np.zeros(len(found), dtype=FACTS))
    gone = {}
    for row, (_, stat) in enumerate(found):
        if stat is None:
            gone[row] = "a link to nothing, or not a file"
        else:
            listing.facts[row]["bytes"], listing.facts[row]["mtime_ns"] = stat.st_size, stat.st_mtime_ns
    return listing, gone


def _validate(listing: Listing, bad: dict[int, str], file: Path) -> None:
    """Fill in the facts, from `file` or by decoding, and keep them there. `bad`: unusable rows, and why."""
    kept = read_kept(file)
    if kept is None and file.exists():
        listing.notes.append(f"{file}: the kept index was damaged or of another version, and was built again")
    elif kept is not None:
        recall(kept, listing.paths, listing.facts)
    unknown = np.array(
        [row for row in np.flatnonzero(~listing.facts["valid"]) if row not in bad], dtype=np.int64
    )
    try:
        bad = bad | _inspect_all(listing, unknown)
    finally:  # also after Ctrl-C: what was decoded need not be decoded again
        if len(unknown) or kept is None or len(kept[0]) != len(listing.paths):
            _keep(listing, file)
    if bad:
        named = [f"{os.fsdecode(bytes(listing.paths[row]))} ({bad[row]})" for row in sorted(bad)]
        raise TargetError(
            f"{listing.root}: {len(bad)} of {len(listing.paths)} pictures cannot be used: {_first(named)}; "
            f"replace or remove them"
        )


def _keep(listing: Listing, file: Path) -> None:
    try:
        write_kept(file, listing.paths, listing.facts)
    except OSError as error:
        reason = error.strerror or str(error)
        listing.notes.append(
            f"{file.parent}: the index cannot be kept there ({reason}), "
            f"so each run validates every picture again; allow writing there"
        )


def _inspect_all(listing: Listing, rows: NDArray[np.int64]) -> dict[int, str]:
    """Decode the pictures `rows` and fill in their facts; returns the bad ones with the reason."""
    bad: dict[int, str] = {}
    jobs = [rows[start : start + _PER_JOB] for start in range(0, len(rows), _PER_JOB)]
    if not jobs:
        return bad
    pool = ThreadPoolExecutor(min(32, os.cpu_count() or 1))
    with warnings.catch_warnings(), Progress(f"checking {listing.root.name}", total=len(rows)) as progress:
        warnings.simplefilter("ignore")  # Pillow's, of odd metadata; `inspect` checks size limits itself
        try:
            lengths = {pool.submit(_inspect_some, listing, job): len(job) for job in jobs}
            for done in as_completed(lengths):
                bad.update(done.result())
                progress.advance(lengths[done])
        finally:
            pool.shutdown(cancel_futures=True)
    return bad


def _inspect_some(listing: Listing, rows: NDArray[np.int64]) -> dict[int, str]:
    bad = {}
    for row in rows:
        try:
            seen = inspect((listing.root / os.fsdecode(bytes(listing.paths[row]))).read_bytes())
        except UnreadableError as error:
            bad[int(row)] = str(error)
        except OSError as error:
            bad[int(row)] = error.strerror or str(error)
        else:
            fact = listing.facts[row]
            fact["size"], fact["transcode"] = (seen.height, seen.width), seen.transcode
            fact["content"] = np.frombuffer(seen.content, dtype=np.uint8)
            fact["valid"] = True
    return bad


def _refuse_empty_classes(root: Path, paths: Paths) -> None:
    used = {os.fsdecode(bytes(path).split(b"/", 1)[0]) for path in paths}
    empty = [name for name in class_folders(root) if name not in used]
    if empty:
        raise TargetError(
            f"{root}: no .jpg, .jpeg or .png file in class folder {_first(empty)}; fill or remove it"
        )


def _first(names: list[str]) -> str:
    """The first few of many names, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _walk(root: Path) -> tuple[list[_Found], Counter[str]]:
    """Relative paths in order with their stat (None: no file behind it), and ignored files by extension."""
    found: list[_Found] = []
    ignored: Counter[str] = Counter()
    for entry, parents in _files_below(root, ()):
        name, suffix = entry.name, os.path.splitext(entry.name)[1].lower()  # noqa: PTH122  (a Path per file is slow)
        if not parents or name.startswith(".") or suffix not in _EXTENSIONS:
            ignored[suffix or "without extension"] += 1
            continue
        try:
            stat = entry.stat()
        except OSError:
            stat = None
        is_file = stat is not None and S_ISREG(stat.st_mode)  # reading a pipe would wait for ever
        found.append((os.fsencode("/".join((*parents, name))), stat if is_file else None))
    return found, ignored


def _files_below(
    folder: Path, parents: tuple[str, ...], above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[tuple[os.DirEntry[str], tuple[str, ...]]]:
    """Files below a folder with the folders that lead to them, sorted by name at each level; links are
    followed, loops are not.
    """
    try:
        here = folder.stat()
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        raise TargetError(
            f"{folder}: cannot be listed ({error.strerror or error}); allow reading it"
        ) from None
    if (here.st_dev, here.st_ino) in above:
        return
    for entry in entries:
        if not entry.is_dir():
            yield entry, parents
        elif not entry.name.startswith("."):
            below = above | {(here.st_dev, here.st_ino)}
            yield from _files_below(folder / entry.name, (*parents, entry.name), below)
