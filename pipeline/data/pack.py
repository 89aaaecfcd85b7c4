"""Pack the images of a target into tar shards that WebDataset reads, one per block of a store, for `tar:`.

A shard holds the images of consecutive rows as their files are, SAMPLE.jpg beside SAMPLE.json with label and
id. So contents and ids are those of the loose files, and the same stores serve both.
"""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from pathlib import Path

from cache import Location, default_block_rows, sizes_in, write_durably
from cache.storage.remote import reaching
from pipeline.data.datasets import UNLABELLED, Dataset, EncodedImages
from pipeline.data.datasets.own.declaration import Declaration
from pipeline.data.datasets.own.shard import SAMPLE_ID
from pipeline.runtime import Progress
from sskt.errors import TargetError


def write_packs(datasets: dict[str, Dataset], folder: Location) -> None:
    """Write all splits of a target as SPLIT-00000.tar and so on; those that are there are kept, so that a
    stopped call goes on.

    Raises TargetError for a target that is not of image files, labels that are not known of some classes, and
    a folder that holds shards of something else.
    """
    first = next(iter(datasets.values()))
    for dataset in datasets.values():
        _require_packable(dataset)
    labelled = next((each for split, each in datasets.items() if split != UNLABELLED), first)
    blocks = {
        f"{split}-{number:05d}.tar": (dataset, rows)
        for split, dataset in datasets.items()
        for number, rows in enumerate(_blocks(len(dataset)))
    }
    there = sizes_in(folder)
    if strange := sorted(name for name in there if name.endswith(".tar") and name not in blocks):
        raise TargetError(
            f"{folder}: holds {strange[0]}, which is no pack of {first.target}; remove it, or pack elsewhere"
        )
    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)
    with Progress(f"packing {first.target}", total=sum(map(len, datasets.values()))) as progress:
        for name, (dataset, rows) in blocks.items():
            with tempfile.TemporaryDirectory(dir=folder if isinstance(folder, Path) else None) as scratch:
                shard = Path(scratch) / name
                _write_shard(dataset, rows, shard)
                if there.get(name) != shard.stat().st_size:
                    _move(shard, folder / name)
            progress.advance(len(rows))
    declared, content = Declaration(labelled.classes, labelled.multi_hot is not None).parts()
    write_durably(folder / declared, content)


def require_same(loose: Dataset, packed: Dataset, folder: Location) -> None:
    """Raise TargetError unless packs hold what was packed: ids, contents, classes and labels."""
    for what in ("content_sha256", "classes", "truth_bytes"):
        if getattr(loose, what) != getattr(packed, what):
            raise TargetError(
                f"{folder}: its {loose.split} split does not read back as {loose.target}'s ({what} differs); "
                f"remove the folder, and pack again"
            )


def _blocks(n: int) -> list[range]:
    size = default_block_rows(n)
    return [range(begin, min(begin + size, n)) for begin in range(0, n, size)]


def _require_packable(dataset: Dataset) -> None:
    if not isinstance(dataset.access, EncodedImages):
        raise TargetError(
            f"--pack: {dataset.target} is not of image files, which alone are packed; leave it out (frames "
            f"of videos are packed under --cache-dir without it)"
        )
    if dataset.multi_hot is not None and (dataset.multi_hot[dataset.labelled] < 0).any():
        raise TargetError(
            f"--pack: some labels of {dataset.target} are not counted, which shards cannot say; copy its "
            f"files instead"
        )


def _write_shard(dataset: Dataset, rows: range, shard: Path) -> None:
    """Write a shard whose bytes depend on the images alone."""
    assert isinstance(dataset.access, EncodedImages)  # noqa: S101 - `_require_packable` looked
    with tarfile.open(shard, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for row in rows:
            path = bytes(dataset.access.paths[row]).decode("utf-8", "surrogateescape")
            about = {**_label(dataset, row), SAMPLE_ID: int(dataset.ids[row]), "path": path}
            name = f"{dataset.ids[row]:09d}"
            _add(tar, name + Path(path).suffix.lower(), dataset.access.read(row))
            _add(tar, f"{name}.json", json.dumps(about).encode())


def _label(dataset: Dataset, row: int) -> dict[str, object]:
    if dataset.multi_hot is not None:
        return {"labels": [dataset.classes[label] for label in (dataset.multi_hot[row] == 1).nonzero()[0]]}
    return {"label": dataset.classes[dataset.labels[row]]} if dataset.labels[row] >= 0 else {}


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _move(shard: Path, place: Location) -> None:
    """Put a local file at a place, whole or not at all."""
    if isinstance(place, Path):
        shard.replace(place)
        return
    with reaching(place):
        place.fs.put_file(str(shard), place.path)
