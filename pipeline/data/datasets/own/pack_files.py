"""The files that a folder or a pattern names, with braces as WebDataset writes them, and their splits."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePath

from pipeline.data.datasets.own.annotations import all_unlabelled, splits_of
from pipeline.data.datasets.remote_pack import Pack, beside, is_url, list_remote, path_in_store
from pipeline.data.datasets.walk import is_hidden
from sskt.errors import TargetError, shown

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")
_MOST = 1_000_000  # files that one pattern names


def files_at(root: Path, suffixes: Sequence[str], folder: Path | None = None) -> list[Pack]:
    """The files that `root` names, sorted: itself, those below it if it is a folder, or those of its pattern
    (*, ?, [...], {000..146} and {a,b}); those of an object store are read by way of `folder`, see
    `RemotePack`. Raises TargetError for a file of a range or choice that is missing, and a URL that cannot be
    listed.
    """
    if is_url(root):
        names = _expanded(path_in_store(root))
        wild = any(map(_has_wildcard, names))
        listed = list_remote(root, names, folder, wild=wild)
        _refuse_missing(root, [] if wild else [n for n in names if n not in listed], len(names))
        packs = [pack for pack in listed.values() if pack.name.endswith(tuple(suffixes))]
        return [pack for pack in packs if not is_hidden(pack.name)]
    if root.is_file():
        return [root]
    if root.is_dir():
        below = (path for suffix in suffixes for path in root.rglob(f"*{suffix}"))
        return [*sorted(path for path in below if not any(map(is_hidden, path.relative_to(root).parts)))]
    found: list[Path] = []
    for name in _expanded(str(root)):
        matching = sorted(Path(each) for each in glob.glob(name)) if _has_wildcard(name) else [Path(name)]  # noqa: PTH207
        found += matching
    _refuse_missing(root, [path.name for path in found if not path.is_file()], len(found))
    return [path for path in dict.fromkeys(found) if path.is_file()]


def _refuse_missing(root: Path, missing: Sequence[str], n: int) -> None:
    """Raise TargetError if some of n files that are named are not there; a single one is looked for later."""
    if missing and n > 1:
        raise TargetError(
            f"{shown(str(root))}: {len(missing):,} of its {n:,} files are missing, the first is "
            f"{shown(missing[0].rpartition('/')[2])}; restore them, or name those that are there"
        )


def split_of_each(files: Sequence[Pack], root: Path) -> list[str] | None:
    """The split that a word of each file's name means (train-00000-of-00004.parquet, flowers-train-0.tar),
    else the folder that it lies in, below `root`; None if none means any. Raises TargetError if only some do.
    """
    words = [_word(file, root) for file in files]
    meant = splits_of([word for word in words if word is not None])
    if not meant:
        return None
    strange = [file for file, word in zip(files, words, strict=True) if word not in meant]
    if strange:
        raise TargetError(
            f"{shown(str(root))}: {len(strange):,} of {len(files):,} files name no split, the first is "
            f"{shown(strange[0].name)}, and others do; begin their names with train, val or test"
        )
    return [meant[word] for word in words if word is not None]


def are_labelled(files: Sequence[Pack], root: Path) -> list[bool]:
    """Whether each file is of a split with labels; see `split_of_each`."""
    splits = split_of_each(files, root)
    return [splits is None or not all_unlabelled([splits[number]]) for number in range(len(files))]


def names_below(files: Sequence[Pack], root: Path) -> tuple[Path, list[str]]:
    """The folder below which all files lie, `root` if it is one, and their paths there."""
    above = root
    if not root.is_dir():
        common = os.path.commonpath([path_in_store(file.parent) for file in files])
        above = beside(root, common) if is_url(root) else Path(common)
    return above, [str(file).removeprefix(f"{above}/") for file in files]


def _word(file: Pack, root: Path) -> str | None:
    """The word in a file's name that means a split, if it is the only one, else its folder below `root`."""
    above = PurePath(str(file.parent))
    folders = above.relative_to(str(root)).parts if above.is_relative_to(str(root)) else above.parts[-1:]
    words: list[str] = [word for word in re.findall(r"[^\W\d_]+", file.name) if splits_of([word])]
    if len({split for word in words for split in splits_of([word]).values()}) == 1:
        return words[0]
    return next((folder for folder in reversed(folders) if splits_of([folder])), None)


def _expanded(pattern: str) -> list[str]:
    """A pattern's braces, written out."""
    if match := _RANGE.search(pattern):
        first, last = match.groups()
        if int(last) - int(first) >= _MOST:
            raise TargetError(f"{shown(pattern)}: names more than {_MOST:,} files; shorten its range")
        middles = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    elif match := _CHOICE.search(pattern):
        middles = match.group(1).split(",")
    else:
        return [pattern]
    begin, end = match.span()
    return [each for middle in middles for each in _expanded(pattern[:begin] + middle + pattern[end:])]


def _has_wildcard(name: str) -> bool:
    return any(c in name for c in "*?[")
