"""What checking a target's images found, beside stores on a URL, so that a fresh node need not read them all.

The folder `indexes` there holds copies of the files in `Paths.index_dir`, under the same names.
"""

from __future__ import annotations

import logging
from pathlib import Path

from cache import CacheError, Location, local_path, names_in, read_file, write_durably
from pipeline.data.datasets import Dataset, DatasetSpec, load_dataset
from pipeline.data.datasets.checked_files import shared_copy
from pipeline.data.datasets.image_files import ImageSpec
from pipeline.runtime import Paths

log = logging.getLogger(__name__)

_SUFFIXES = (".npz", "-left-out.json")


def load_shared(spec: DatasetSpec, split: str, *, paths: Paths, limit: int | None = None) -> Dataset:
    """Load one split of a target; see `load_dataset`. Of image files, fetch what this machine lacks of their
    index first, and put there what that side lacks, or what has changed; not for stores in a local folder.

    Raises CacheError if the object store cannot be read; one that cannot be written is logged.
    """
    place, start = paths.cache_dir / "indexes", f"{spec.slug}-"
    is_shared = local_path(place) is None and isinstance(spec, ImageSpec)
    there = [name for name in names_in(place) if name.startswith(start)] if is_shared else []
    for name in there:
        _fetch(place / name, paths.index_dir / name)
    before = _times(paths.index_dir, start)
    dataset = load_dataset(spec, split, data_dir=paths.data_dir, index_dir=paths.index_dir, limit=limit)
    for file, time_ns in _times(paths.index_dir, start).items() if is_shared else ():
        shared_copy(file).unlink(missing_ok=True)
        if file.name not in there or before.get(file) != time_ns:
            try:
                write_durably(place / file.name, file.read_bytes())
            except (CacheError, OSError) as error:
                log.warning(f"the index of {spec.name} cannot be kept beside the stores: {error}")
    return dataset


def _fetch(place: Location, file: Path) -> None:
    """Copy a file here once, unless this machine has its own; facts under a name that says that they are
    another machine's.
    """
    copy = shared_copy(file) if file.suffix == ".npz" else file
    if not file.exists() and not copy.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_durably(copy, read_file(place))


def _times(folder: Path, start: str) -> dict[Path, int]:
    """When each file of this machine's own index was written, by its path."""
    files = [file for suffix in _SUFFIXES for file in folder.glob(f"*{suffix}")]
    own = [file for file in files if file.name.startswith(start) and not file.name.endswith(".shared.npz")]
    return {file: file.stat().st_mtime_ns for file in own}
