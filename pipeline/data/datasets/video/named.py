"""Videos that a user names one by one, not as a target: packed for the moment, as a target's are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pipeline.data.datasets.dataset import Dataset, DatasetSpec
from pipeline.data.datasets.named_files import NamedFiles
from pipeline.data.datasets.named_images import unlabelled_dataset
from pipeline.data.datasets.video.dataset import Packs
from pipeline.data.datasets.video.pack import SUFFIX, PackInfo, Packing, Stamp, write_pack
from pipeline.data.datasets.video.pack_record import read_record
from pipeline.data.datasets.video.spec import VideoSpec
from sskt.errors import TargetError, UnreadableError


def load_named_videos(
    files: NamedFiles, rows: Sequence[int], classes: tuple[str, ...], packing: Packing, folder: Path
) -> tuple[Dataset, dict[int, str]]:
    """The videos among the `rows` of `files` that can be decoded, packed in `folder`, without labels, with
    their rows as ids; and the rows that cannot be used, and why. Raises TargetError if `folder` cannot be
    written.
    """
    unusable = files.unusable_among(rows)
    left = [row for row in rows if row not in unusable]

    def pack(row: int) -> PackInfo | str:
        source = files.paths[row]
        try:
            Stamp.of(source)
        except OSError as error:
            return f"cannot be read ({error.strerror or error})"
        try:
            return write_pack(source, folder / f"{row}{SUFFIX}", packing)
        except UnreadableError as error:
            return str(error)
        except OSError as error:
            raise TargetError(
                f"{folder}: {source} cannot be packed there ({error.strerror or error}); make room, or name "
                f"another folder with TMPDIR"
            ) from error

    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="pack") as pool:
        packed = dict(zip(left, pool.map(pack, left), strict=True))
    packs = {row: what for row, what in packed.items() if not isinstance(what, str)}
    unusable |= {row: what for row, what in packed.items() if isinstance(what, str)}
    sizes = [(p.n_frames, p.height, p.width) for p in packs.values()]
    contents = [list(p.content) for p in packs.values()]
    access = Packs(
        [folder / f"{row}{SUFFIX}" for row in packs],
        list(packs.values()),
        [str(files.paths[row]) for row in packs],
    )
    dataset = unlabelled_dataset(
        "video",
        classes,
        np.array(list(packs), dtype=np.int64),
        np.array(sizes, dtype=np.int32).reshape(-1, 3),
        access,
        np.array(contents, dtype=np.uint8).reshape(-1, 16),
    )
    return dataset, unusable


def recorded_packing(spec: DatasetSpec, data_dir: Path, index_dir: Path) -> Packing | None:
    """How the videos of a target were packed; None if that is not known any more."""
    record = read_record(spec, data_dir, index_dir) if isinstance(spec, VideoSpec) else None
    return None if record is None else record.packing
