"""A text file that names the samples whose labels a run may see, one a line."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from pipeline.data.datasets import Dataset, EncodedImages, FileImages, Packs, Positions
from sskt.errors import RunError, shown


def listed_in(file: Path, dataset: Dataset, root: Path) -> Positions:
    """The rows that the lines of `file` name, ascending: int64 (n,).

    Files are named by their path, relative to the target's folder `root`, of images also to the split's, or
    absolute; samples of binary archives by their id, the row in the training split. Empty lines are passed
    over. Raises RunError, with the count and the first one, for lines that name no sample of `dataset`.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise RunError(
            f"--labelled {shown(str(file))}: cannot be read ({error.strerror or error}); check its path"
        ) from None
    lines = [(number, line.strip()) for number, line in enumerate(os.fsdecode(content).splitlines(), start=1)]
    lines = [(number, line) for number, line in lines if line]
    known = _names(dataset)
    rows = [known.get(line, known.get(_within(dataset, line, root), -1)) for _, line in lines]
    if strange := [named for named, row in zip(lines, rows, strict=True) if row < 0]:
        number, line = strange[0]
        target, usual = shown(dataset.target), shown(next(iter(known)))
        raise RunError(
            f"--labelled {shown(str(file))}: {len(strange):,} of {len(lines):,} lines name no training "
            f"sample of {target}, the first is line {number}, {shown(line)}; name them like {usual}"
        )
    if not rows:
        raise RunError(f"--labelled {shown(str(file))}: is empty; name a sample on each line")
    return np.unique(np.array(rows, dtype=np.int64))


def _names(dataset: Dataset) -> dict[str, int]:
    """The row of each sample, by its name in a list."""
    if isinstance(dataset.access, EncodedImages):
        return {os.fsdecode(path): row for row, path in enumerate(dataset.access.paths.tolist())}
    if isinstance(dataset.access, Packs):
        return {name: row for row, name in enumerate(dataset.access.names)}
    return {str(number): row for row, number in enumerate(dataset.ids.tolist())}


def _within(dataset: Dataset, line: str, root: Path) -> str:
    """A path from the target's folder, or an absolute one, as a path from the folder of the split."""
    if dataset.kind == "array":
        return line
    below = dataset.access.root if isinstance(dataset.access, FileImages) else root
    return os.path.relpath(Path(root, line), below)
