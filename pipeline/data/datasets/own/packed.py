"""Images that lie one behind another in a user's files: what families of shards and tables share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.datasets.image_files import ImageListing, ImageSpec, list_packed
from pipeline.data.datasets.images import PackedImages
from pipeline.data.datasets.own.annotations import Annotations
from pipeline.data.datasets.own.family import OwnImages
from pipeline.data.datasets.own.pack_files import names_below, split_of_each
from pipeline.data.datasets.remote_pack import Pack, note_on_room, stamp_of
from sskt.errors import TargetError, shown


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PackedRows:
    """N images in files, which `packs` holds, in their order: `n_of_each`, how many lie in each file; names,
    unique, and keys, as in `Annotations`; begins, lengths: int64 (N,), their bytes; labels and the rest as in
    `Annotations`.
    """

    files: Sequence[Pack]  # the user's
    packs: Sequence[Pack]  # where the bytes are, which may be copies
    n_of_each: Sequence[int]
    names: Sequence[str]
    keys: Sequence[str]
    begins: NDArray[np.int64]
    lengths: NDArray[np.int64]
    labels: Sequence[tuple[str, ...]]
    several: bool
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    ids: Sequence[int] | None = None


class PackedFamily(OwnImages):
    """Families of files that hold many images each. The names of the files say the splits."""

    @abstractmethod
    def files(self, root: Path, folder: Path | None = None) -> list[Pack]:
        """The files that a target's path names; none if nothing is there. `folder` as in `files_at`."""

    @abstractmethod
    def rows(self, root: Path, files: list[Pack], below: list[str], index_dir: Path, slug: str) -> PackedRows:
        """What the files hold; names begin with the file's own in `below`."""

    def lies_there(self, spec: ImageSpec, data_dir: Path) -> bool:  # noqa: ARG002
        """See `Family.lies_there`."""
        return bool(self.files(spec.root))

    def splits(self, spec: ImageSpec, data_dir: Path) -> Collection[str]:  # noqa: ARG002
        """See `OwnImages.splits`."""
        return split_of_each(self.files(spec.root), spec.root) or ()

    def annotated(
        self, root: Path, data_dir: Path, index_dir: Path, slug: str
    ) -> tuple[Annotations, ImageListing]:
        """See `OwnImages.annotated`."""
        files = self.files(root, data_dir / "packs")
        above, below = names_below(files, root)
        rows = self.rows(root, files, below, index_dir, slug)
        if not rows.names:
            raise TargetError(
                f"{shown(str(root))}: its {len(rows.files):,} files hold no image; {self.how_to_prepare}"
            )
        of = np.repeat(np.arange(len(rows.files)), rows.n_of_each)
        images = PackedImages.lying_in(above, rows.packs, of, rows.names, rows.begins, rows.lengths)
        mtimes_ns = np.array([stamp_of(file)[1] for file in rows.files], dtype=np.int64)
        listing = list_packed(root, images, mtimes_ns[of], slug=slug, index_dir=index_dir)
        splits = split_of_each(rows.files, root)
        said = Annotations(
            str(root),
            rows.names,
            rows.keys,
            None if splits is None else [splits[number] for number in of],
            rows.labels,
            rows.several,
            rows.classes,
            (*rows.notes, *note_on_room(list(rows.packs))),
            None if rows.ids is None else np.array(rows.ids, dtype=np.int64),
        )
        return said, listing
