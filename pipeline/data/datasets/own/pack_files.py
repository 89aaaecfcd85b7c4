"""The files that a folder or a pattern names, with braces as WebDataset writes them, and their splits."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.data.datasets.own.annotations import all_unlabelled, splits_of
from pipeline.data.datasets.walk import is_hidden
from sskt.errors import TargetError, shown

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")
_MOST = 1_000_000  # files that one pattern names


def files_at(root: Path, suffixes: Sequence[str]) -> list[Path]:
    """The files that `root` names, sorted: itself, those below it if it is a folder, or those of its pattern
    (*, ?, [...], {000..146} and {a,b}). Raises TargetError for a file of a range or choice that is missing.
    """
    if root.is_file():
        return [root]
    if root.is_dir():
        below = (path for suffix in suffixes for path in root.rglob(f"*{suffix}"))
        return sorted(path for path in below if not any(map(is_hidden, path.relative_to(root).parts)))
    found: list[Path] = []
    for name in _expanded(str(root)):
        matching = sorted(Path(each) for each in glob.glob(name)) if _has_wildcard(name) else [Path(name)]  # noqa: PTH207
        found += matching
    missing = [path for path in found if not path.is_file()]
    if missing and len(found) > 1:
        raise TargetError(
            f"{shown(str(root))}: {len(missing):,} of its {len(found):,} files are missing, the first is "
            f"{shown(missing[0].name)}; restore them, or name those that are there"
        )
    return [path for path in dict.fromkeys(found) if path.is_file()]


def split_of_each(files: Sequence[Path], root: Path) -> list[str] | None:
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


def are_labelled(files: Sequence[Path], root: Path) -> list[bool]:
    """Whether each file is of a split with labels; see `split_of_each`."""
    splits = split_of_each(files, root)
    return [splits is None or not all_unlabelled([splits[number]]) for number in range(len(files))]


def common_folder(files: Sequence[Path]) -> Path:
    """The folder below which all files lie."""
    return Path(os.path.commonpath([file.parent for file in files]))


def _word(file: Path, root: Path) -> str | None:
    """The word in a file's name that means a split, if it is the only one, else its folder below `root`."""
    above = file.parent
    folders = above.relative_to(root).parts if above.is_relative_to(root) else above.parts[-1:]
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
