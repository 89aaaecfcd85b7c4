"""The images below one folder, or of one list: validated, in order, with what the user should know of the
rest.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.data.datasets.bit_depth import FULL, depth_of
from pipeline.data.datasets.checked_files import FACTS, Facts, RelativePaths, facts_file
from pipeline.data.datasets.class_folders import class_folders
from pipeline.data.datasets.dataset import Dataset, DatasetSpec
from pipeline.data.datasets.decode import FORMATS, SUFFIXES
from pipeline.data.datasets.images import EncodedImages, FileImages, PackedImages
from pipeline.data.datasets.left_out import UnusableFiles, read_accepted, write_list
from pipeline.data.datasets.validation import KINDS, check_images
from pipeline.data.datasets.walk import Found, describe_ignored, images_below
from sskt.errors import TargetError, few, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpec(DatasetSpec):
    """A target of image files, shown the ImageNet way: random-resized crops of 224 px, and for evaluation the
    central 224 px of a short side of 256 px.
    """

    side_px: int = 224
    short_px: int = 256
    plan_kind: Literal["pad-crop-flip", "random-resized-crop-flip", "corner-clip"] = (
        "random-resized-crop-flip"
    )
    source_scale: Fraction = Fraction(1)


@dataclass(slots=True)
class ImageListing:
    """The images below a folder, sorted by path, or those of a list or of packs; and notes for the user.

    images: of N images; of a folder, the first component of their paths is the class folder. facts:
    `checked_files.FACTS` (N,), all valid. ids: int64 (N,), positions in the folder or list, of which some may
    be left out. depth: bits of the values of 16-bit files.
    """

    root: Path  # for messages
    images: EncodedImages
    facts: Facts
    ids: NDArray[np.int64]
    depth: int = FULL
    notes: list[str] = field(default_factory=list)

    @property
    def paths(self) -> RelativePaths:
        """The names of the images, bytes (N,)."""
        return self.images.paths


def list_images(
    root: Path, *, slug: str, index_dir: Path, beside: Sequence[Path] = (), in_classes: bool = True
) -> ImageListing:
    """List and validate every image below the class folders of `root`, or, without `in_classes`, anywhere
    below it.

    Hidden files and those of other suffixes are ignored, counted in the notes, and listed beside the index
    file. 16-bit values are as deep as those of `root` and of the folders `beside` it, the target's other
    splits. Raises UnusableFiles, naming what cannot be decoded, unless the user goes on without it, and
    TargetError for a class folder without images.
    """
    files, ignored = images_below(root, in_classes=in_classes)
    file = facts_file(index_dir, slug, root)
    listing, gone = _new_listing(root, files)
    refuse_empty = _refuse_empty_classes if in_classes else _refuse_empty
    refuse_empty(root, listing.paths, f"no picture ({_suffixes()})")
    where = write_list(file, "ignored", ((os.fsdecode(path), kind) for path, kind in ignored))
    if ignored:
        pictures = "pictures in class folders" if in_classes else "pictures"
        listing.notes.append(
            describe_ignored(root, ignored, where, f"{pictures} ({_suffixes()} and their like)")
        )
    _drop_unusable(listing, _check(listing, gone, file), file)
    refuse_empty(root, listing.paths, "no picture that can be used")
    bits = int(listing.facts["bits"].max(initial=0))
    if bits:
        others = (_bits_below(folder, facts_file(index_dir, slug, folder)) for folder in beside)
        _set_depth(listing, max(bits, *others, 0))
    return listing


def list_paths(root: Path, names: Sequence[str], *, slug: str, index_dir: Path) -> ImageListing:
    """List and validate the images called `names` below `root`, in this order; see `list_images`.

    Raises UnusableFiles, naming what is missing or cannot be decoded, unless the user goes on without it, and
    TargetError for a path that occurs twice.
    """
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise TargetError(f"{root}: {shown(twice[0])} is listed twice; restore the official list")
    files: list[Found] = []
    for name in names:
        try:
            files.append((os.fsencode(name), (root / name).stat()))
        except OSError:
            files.append((os.fsencode(name), None))
    listing, gone = _new_listing(root, files)
    file = facts_file(index_dir, slug, root)
    _drop_unusable(listing, _check(listing, gone, file), file)
    if not len(listing.paths):
        raise TargetError(f"{root}: none of its {len(names):,} listed pictures can be used; restore them")
    _set_depth(listing, int(listing.facts["bits"].max()))
    return listing


def list_packed(
    root: Path, images: PackedImages, mtimes_ns: NDArray[np.int64], *, slug: str, index_dir: Path
) -> ImageListing:
    """List and validate images in larger files, whose times of change are int64 (N,); see `list_images`.

    Raises UnusableFiles, naming what cannot be decoded, unless the user goes on without it.
    """
    n = len(images.paths)
    listing = ImageListing(root, images, np.zeros(n, dtype=FACTS), np.arange(n))
    listing.facts["bytes"], listing.facts["mtime_ns"] = images.lengths, mtimes_ns
    file = facts_file(index_dir, slug, root)
    _drop_unusable(listing, _check(listing, {}, file), file)
    if not len(listing.paths):
        raise TargetError(f"{shown(str(root))}: none of its {n:,} pictures can be used; restore them")
    _set_depth(listing, int(listing.facts["bits"].max()))
    return listing


def to_dataset(
    listing: ImageListing,
    spec: DatasetSpec,
    split: str,
    classes: tuple[str, ...],
    labels: NDArray[np.int64],
    multi_hot: NDArray[np.int8] | None = None,
) -> Dataset:
    """The dataset of a listing and its labels, int64 (N,)."""
    deep = (listing.facts["bits"] > 0) & (listing.depth != FULL)
    contents = np.ascontiguousarray(listing.facts["content"])
    for row in np.flatnonzero(deep):  # their pixels depend on the depth as well
        contents[row] = np.frombuffer(_at_depth(contents[row].tobytes(), listing.depth), dtype=np.uint8)
    return Dataset(
        target=spec.name,
        split=split,
        kind="files",
        classes=classes,
        ids=listing.ids,
        labels=labels,
        sizes=np.ascontiguousarray(listing.facts["size"]),
        contents=contents,
        access=listing.images.decoded(
            np.ascontiguousarray(listing.facts["transcode"]),
            np.where(deep, listing.depth, FULL).astype(np.uint8),
        ),
        notes=tuple(listing.notes),
        multi_hot=multi_hot,
    )


def _new_listing(root: Path, files: list[Found]) -> tuple[ImageListing, dict[int, str]]:
    """A listing not yet validated, and its rows that are not files, with the reason."""
    n = len(files)
    images = FileImages.below(root, [path for path, _ in files])
    listing = ImageListing(root, images, np.zeros(n, dtype=FACTS), np.arange(n))
    gone = {}
    for row, (_, stat) in enumerate(files):
        if stat is None:
            gone[row] = "a link to nothing, or not a file"
        else:
            listing.facts[row]["bytes"], listing.facts[row]["mtime_ns"] = stat.st_size, stat.st_mtime_ns
    return listing, gone


def _check(listing: ImageListing, gone: dict[int, str], file: Path) -> dict[int, str]:
    return check_images(
        listing.images, listing.facts, gone, file, listing.notes, what=shown(listing.root.name)
    )


def _drop_unusable(listing: ImageListing, bad: dict[int, str], file: Path) -> None:
    """Drop the rows that cannot be used. Raises UnusableFiles unless the user goes on without them."""
    reasons = {os.fsdecode(bytes(listing.paths[row])): bad[row] for row in sorted(bad)}
    where = write_list(file, "unusable", reasons.items())
    n = f"{len(bad):,} of {len(listing.paths):,} pictures"
    if reasons and reasons.keys() - read_accepted(file):
        named = [f"{shown(path)} ({shown(why)})" for path, why in reasons.items()]
        raise UnusableFiles(
            f"{shown(str(listing.root))}: {n} cannot be used: {few(named)}"
            f"{f', all in {where}' if where else ''}; replace or remove them, or go on without them by "
            f"sskt prepare --allow-missing",
            file,
            reasons,
        )
    if bad:
        listing.notes.append(
            f"{shown(str(listing.root))}: {n} are left out, as --allow-missing said"
            f"{f', all in {where}' if where else ''}"
        )
        sound = np.flatnonzero(listing.facts["valid"])
        listing.images, listing.facts = listing.images.take(sound), listing.facts[sound]
        listing.ids = listing.ids[sound]
    listing.notes += remarks_on(listing.paths, listing.facts, shown(str(listing.root)))


def remarks_on(paths: RelativePaths, facts: Facts, where: str) -> list[str]:
    """Notes on files that a user may take for something else."""
    notes = []
    several = np.flatnonzero(facts["several"])
    if len(several):
        named = [shown(os.fsdecode(bytes(paths[row]))) for row in several]
        notes.append(
            f"{where}: {len(several):,} files hold several images (frames or pages), of which the first is "
            f"read: {few(named)}"
        )
    suffixes = (os.path.splitext(os.fsdecode(path))[1].lower() for path in paths.tolist())  # noqa: PTH122
    pairs = Counter(zip(facts["kind"].tolist(), suffixes, strict=True))
    strange = {  # kind 0: unknown, kept by an earlier version
        (kind, suffix): n
        for (kind, suffix), n in pairs.most_common()
        if kind and suffix and SUFFIXES.get(suffix) != KINDS[kind - 1]
    }
    if strange:
        kinds = ", ".join(
            f"{n:,} {suffix} with {KINDS[kind - 1]} inside" for (kind, suffix), n in strange.items()
        )
        notes.append(
            f"{where}: {sum(strange.values()):,} files are not what their suffix says, and are read as what "
            f"they are ({kinds})"
        )
    return notes


def _set_depth(listing: ImageListing, bits: int) -> None:
    """Choose how many bits the values of 16-bit files have; `bits`: the most that any uses."""
    listing.depth = depth_of(bits) if bits else FULL
    n = int((listing.facts["bits"] > 0).sum())
    if n and listing.depth != FULL:
        listing.notes.append(
            f"{shown(str(listing.root))}: {n:,} 16-bit pictures are read as {listing.depth}-bit ones: no "
            f"value in this target is above {(1 << listing.depth) - 1:,}"
        )


def _bits_below(folder: Path, file: Path) -> int:
    """The most bits that any 16-bit image below a folder uses."""
    files, _ = images_below(folder)
    listing, gone = _new_listing(folder, files)
    _check(listing, gone, file)
    return int(listing.facts["bits"].max(initial=0))


def _at_depth(content: bytes, depth: int) -> bytes:
    return hashlib.sha256(content + b"depth" + bytes((depth,))).digest()[:16]


def _refuse_empty_classes(root: Path, paths: RelativePaths, what: str) -> None:
    used = {os.fsdecode(bytes(path).split(b"/", 1)[0]) for path in paths}
    empty = [shown(name) for name in class_folders(root) if name not in used]
    if empty:
        raise TargetError(f"{shown(str(root))}: {what} in class folder {few(empty)}; fill or remove it")


def _refuse_empty(root: Path, paths: RelativePaths, what: str) -> None:
    if not len(paths):
        raise TargetError(f"{shown(str(root))}: {what} in this folder; fill or remove it")


def _suffixes() -> str:
    return ", ".join(suffixes[0] for suffixes in FORMATS.values())
