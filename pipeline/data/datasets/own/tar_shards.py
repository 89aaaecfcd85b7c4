"""tar:PATTERN, images and labels in tar shards as WebDataset writes them; they are read where they lie."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from pipeline.data.datasets.checked_files import facts_file
from pipeline.data.datasets.image_files import ImageSpec
from pipeline.data.datasets.own.declaration import read_declaration
from pipeline.data.datasets.own.pack_files import are_labelled, files_at
from pipeline.data.datasets.own.packed import PackedFamily, PackedRows
from pipeline.data.datasets.own.read_tar import read_shard
from pipeline.data.datasets.own.shard import SAMPLE_ID, Sample, Shard
from pipeline.data.datasets.own.tar_index import read_shards
from pipeline.data.datasets.remote_pack import Pack, url_path
from sskt.errors import TargetError, shown

_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")  # compressed ones are refused


class TarShards(PackedFamily):
    """A user's tar shards."""

    name, what = "tar", "shard"
    how_to_prepare = (
        "name a tar file, a folder of them, or a pattern such as 'train-{000..146}.tar' or '*.tar'"
    )

    def from_path(self, path: str) -> ImageSpec:
        """See `Family.from_path`; of shards the path may be a URL, and `root` then is a `UPath`."""
        return self.spec_at(url_path(path)) if "://" in path else super().from_path(path)

    def files(self, root: Path, folder: Path | None = None) -> list[Pack]:
        """See `PackedFamily.files`."""
        return files_at(root, _SUFFIXES, folder)

    def has_several_labels(self, spec: ImageSpec) -> bool:
        """See `Family.has_several_labels`; by the first shard that says anything."""
        if (declared := read_declaration(spec.root)) is not None:
            return declared.several
        for file in self.files(spec.root):
            said = (sample.several for sample in read_shard(file).samples)
            if (several := next((each for each in said if each is not None), None)) is not None:
                return several
        return False

    def rows(self, root: Path, files: list[Pack], below: list[str], index_dir: Path, slug: str) -> PackedRows:
        """See `PackedFamily.rows`."""
        notes, declared = list[str](), read_declaration(root)
        shards = read_shards(files, facts_file(index_dir, f"{slug}-shards", root), notes)
        samples = [sample for shard in shards for sample in shard.samples]
        names = [
            f"{file}/{sample.name}"
            for file, shard in zip(below, shards, strict=True)
            for sample in shard.samples
        ]
        n_of_each = [len(shard.samples) for shard in shards]
        return PackedRows(
            files=files,
            packs=files,
            n_of_each=n_of_each,
            names=names,
            keys=[sample.name for sample in samples],
            begins=np.array([sample.begin for sample in samples], dtype=np.int64),
            lengths=np.array([sample.length for sample in samples], dtype=np.int64),
            labels=[sample.labels for sample in samples],
            several=_several(root, samples, names, np.repeat(are_labelled(files, root), n_of_each)),
            classes=None if declared is None else declared.classes,
            ids=_ids(root, samples),
            notes=(*notes, *_ignored(root, shards)),
        )


def _ids(root: Path, samples: Sequence[Sample]) -> list[int] | None:
    """The samples' own ids; None if none has one. Raises TargetError if only some do."""
    ids = [sample.id for sample in samples if sample.id is not None]
    without = [sample.name for sample in samples if sample.id is None]
    if without and len(without) < len(samples):
        raise TargetError(
            f"{shown(str(root))}: {len(without):,} of {len(samples):,} images have no {SAMPLE_ID} in a .json "
            f"as the others have, the first is {shown(without[0])}; name shards of one kind"
        )
    return None if without else ids


def _several(root: Path, samples: Sequence[Sample], places: Sequence[str], labelled: Iterable[bool]) -> bool:
    """Whether images have several labels. Raises TargetError if some have and others do not."""
    said = [sample.several for sample in samples]
    several = True in said
    odd = [
        place
        for place, each, counts in zip(places, said, labelled, strict=True)
        if several and counts and not each
    ]
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
