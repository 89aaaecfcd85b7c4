"""tar:PATTERN, images and labels in tar shards as WebDataset writes them; they are read where they lie."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from pipeline.data.datasets.bit_depth import FULL
from pipeline.data.datasets.checked_files import facts_file
from pipeline.data.datasets.encoded_images import PackedImages
from pipeline.data.datasets.image_files import ImageListing, ImageSpec, list_packed
from pipeline.data.datasets.own.annotations import Annotations
from pipeline.data.datasets.own.family import OwnImages
from pipeline.data.datasets.own.pack_files import common_folder, files_at, split_of_each
from pipeline.data.datasets.own.read_tar import Sample, Shard, read_shard
from pipeline.data.datasets.own.tar_index import read_shards
from pipeline.data.datasets.registry import target_slug
from sskt.errors import TargetError, shown

_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")  # compressed ones are refused


class TarShards(OwnImages):
    """A user's tar shards."""

    name, what = "tar", "shard"
    how_to_prepare = (
        "name a tar file, a folder of them, or a pattern such as 'train-{000..146}.tar' or '*.tar'"
    )

    def lies_there(self, spec: ImageSpec, data_dir: Path) -> bool:
        """See `Family.lies_there`."""
        return bool(files_at(data_dir / spec.root, _SUFFIXES))

    def has_several_labels(self, spec: ImageSpec) -> bool:
        """See `Family.has_several_labels`; by the first shard that says anything."""
        for file in files_at(spec.root, _SUFFIXES):
            said = (sample.several for sample in read_shard(file).samples)
            if (several := next((each for each in said if each is not None), None)) is not None:
                return several
        return False

    def splits(self, spec: ImageSpec, data_dir: Path) -> Collection[str]:
        """See `OwnImages.splits`."""
        root = data_dir / spec.root
        return split_of_each(files_at(root, _SUFFIXES), root) or ()

    def annotated(self, spec: ImageSpec, root: Path, index_dir: Path) -> tuple[Annotations, ImageListing]:
        """See `OwnImages.annotated`."""
        files, notes, slug = files_at(root, _SUFFIXES), list[str](), target_slug(spec.name)
        index_file = facts_file(index_dir, f"{slug}-shards", root)
        shards = read_shards(files, index_file, notes)
        samples = [sample for shard in shards for sample in shard.samples]
        if not samples:
            raise TargetError(
                f"{shown(str(root))}: its {len(files):,} shards hold no image; {spec.how_to_prepare}"
            )
        pack = np.repeat(np.arange(len(files)), [len(shard.samples) for shard in shards])
        above = common_folder(files)
        names = [
            f"{files[of].relative_to(above)}/{sample.name}" for of, sample in zip(pack, samples, strict=True)
        ]
        places = [f"{name} (byte {sample.begin:,})" for name, sample in zip(names, samples, strict=True)]
        images = PackedImages(
            paths=np.array([os.fsencode(name) for name in names], dtype=np.bytes_),
            transcode=np.zeros(len(names), dtype=bool),
            depths=np.full(len(names), FULL, dtype=np.uint8),
            root=above,
            packs=tuple(files),
            pack=pack,
            begins=np.array([sample.begin for sample in samples], dtype=np.int64),
            lengths=np.array([sample.length for sample in samples], dtype=np.int64),
        )
        mtimes_ns = np.array([file.stat().st_mtime_ns for file in files], dtype=np.int64)
        listing = list_packed(root, images, mtimes_ns[pack], slug=slug, index_dir=index_dir)
        splits = split_of_each(files, root)
        said = Annotations(
            str(root),
            places,
            [sample.name for sample in samples],
            None if splits is None else [splits[of] for of in pack],
            [sample.labels for sample in samples],
            _several(root, samples, places),
            notes=(*notes, *_ignored(root, shards)),
        )
        return said, listing


def _several(root: Path, samples: Sequence[Sample], places: Sequence[str]) -> bool:
    """Whether images have several labels. Raises TargetError if some have and others do not."""
    said = [sample.several for sample in samples]
    several = True in said
    odd = [place for place, each in zip(places, said, strict=True) if several and not each]
    if odd:
        raise TargetError(
            f"{shown(str(root))}: {len(odd):,} of {len(samples):,} images have no list `labels` in a .json, "
            f"and others do, the first is {shown(odd[0])}; write one for each, empty for none"
        )
    return several


def _ignored(root: Path, shards: Sequence[Shard]) -> list[str]:
    """A note on the members that are not read, if there are any."""
    kinds = {kind: 0 for shard in shards for kind, n in shard.ignored.items() if n}
    for kind in kinds:
        kinds[kind] = sum(shard.ignored[kind] for shard in shards)
    if not kinds:
        return []
    named = ", ".join(f"{n:,} {shown(kind)}" for kind, n in kinds.items())
    return [f"{shown(str(root))}: {sum(kinds.values()):,} members are not read ({named})"]
