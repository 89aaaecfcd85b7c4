"""The files below a folder of class folders: images by their suffixes, and what is ignored, by kind."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from stat import S_ISREG

from pipeline.data.datasets.decode import SUFFIXES
from sskt.errors import TargetError, shown

Found = tuple[bytes, os.stat_result | None]  # relative path; None: a link to nothing, or not a file
Ignored = tuple[bytes, str]  # relative path, and its kind

# metadata and thumbnails of operating systems
_SYSTEMS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
_KINDS = 6  # named in a sentence


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or belongs to the system."""
    return name.startswith(".") or name in _SYSTEMS


def images_below(root: Path, *, in_classes: bool = True) -> tuple[list[Found], list[Ignored]]:
    """List the images in class folders (or anywhere below `root`), as sorted relative paths with their stat,
    and all other files. Links are followed, loops are not. Raises TargetError for a folder that cannot be
    listed.
    """
    images: list[Found] = []
    ignored: list[Ignored] = []
    for entry, parents in _files_below(root, ()):
        name, suffix = entry.name, os.path.splitext(entry.name)[1].lower()  # noqa: PTH122  (a Path per file is slow)
        path = os.fsencode("/".join((*parents, name)))
        if is_hidden(name):
            ignored.append((path, "hidden folder" if entry.is_dir() else "hidden"))
        elif suffix not in SUFFIXES:
            ignored.append((path, suffix or "without extension"))
        elif in_classes and not parents:
            ignored.append((path, "outside class folders"))
        else:
            images.append((path, _stat_of(entry)))
    return images, ignored


def describe_ignored(root: Path, ignored: Sequence[Ignored], where: Path | None, read: str) -> str:
    """A sentence on ignored files; `where` they are listed, and what is `read`."""
    kinds = Counter(kind for _, kind in ignored)
    named = [f"{n:,} {shown(kind)}" for kind, n in kinds.most_common(_KINDS)]
    others = len(ignored) - sum(n for _, n in kinds.most_common(_KINDS))
    if others:
        named.append(f"{others:,} of other kinds")
    listed = f", all in {where}" if where else ""
    return (
        f"{shown(str(root))}: {len(ignored):,} files ignored ({', '.join(named)}){listed}; what is read are "
        f"{read}"
    )


def _stat_of(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        stat = entry.stat()
    except OSError:
        return None
    return stat if S_ISREG(stat.st_mode) else None  # reading a pipe would wait for ever


def _files_below(
    folder: Path, parents: tuple[str, ...], above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[tuple[os.DirEntry[str], tuple[str, ...]]]:
    """Yield the files below a folder, and hidden folders, each with the folders that lead to it, sorted by
    name at each level.
    """
    try:
        stat = folder.stat()
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        raise TargetError(
            f"{shown(str(folder))}: cannot be listed ({error.strerror or error}); allow reading it"
        ) from None
    if (stat.st_dev, stat.st_ino) in above:
        return
    for entry in entries:
        if is_hidden(entry.name) or not entry.is_dir():
            yield entry, parents
        else:
            below = above | {(stat.st_dev, stat.st_ino)}
            yield from _files_below(folder / entry.name, (*parents, entry.name), below)
