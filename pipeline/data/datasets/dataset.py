"""What a target's spec says, how a family of targets is read, and one split of a target: which samples there
are, what each one is, and its pixels.

A sample's id is its row in the full split (or in the full listing that splits are drawn from). A subset keeps
the ids, by which labels and logits are looked up.
"""

from __future__ import annotations

import hashlib
import os
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.data.datasets import subset
from pipeline.data.datasets.video.pack import Packing
from sskt.errors import TargetError, shown

SPLITS = ("train", "test")
UNLABELLED = "unlabelled"  # a split of samples without labels, and the family of folders of such images
UNLABELLED_VIDEOS = "unlabelled-videos"  # the family of folders of videos without labels
_LONGEST_SLUG = 160  # bytes: it is part of the names of files and folders, which take 255

Positions = NDArray[np.int64]  # (n,) rows of a dataset, from 0 on; a sample's id is another number
Pixels = NDArray[np.uint8]  # RGB: (H, W, 3) of an image, (n, H, W, 3) of several of one size
Labels = NDArray[np.int64]  # (n,) class numbers, -1 where there is none
MultiHot = NDArray[np.int8]  # (n, K): 1 for a class that is there, 0 for one that is not, -1 if unknown
Mask = NDArray[np.bool_]  # (n,)


class Images(Protocol):
    """Access to a dataset's images by row; safe to use from several threads."""

    def name_of(self, row: int) -> str:
        """The name of an image, for messages."""

    def pixels_of(self, row: int) -> Pixels:
        """One image, uint8 (H, W, 3), RGB."""

    def encoded(self, row: int) -> bytes:
        """One image as a JPEG or PNG file that all decoders read alike."""

    def stack(self, rows: Positions) -> Pixels:
        """Images of one common size, uint8 (n, H, W, 3)."""

    def take(self, rows: Positions) -> Images:
        """Access to the subset `rows`, in that order."""


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """N samples of one split.

    target: recorded name. classes: class names in label order. ids, labels: int64 (N,); a label of -1 is not
    known. sizes: int32 (N, 2),
    (height, width) of the image as stored; of videos (N, 3), (frames, height, width). contents: uint8 (N,
    16), first bytes of the sha256 of the file, or of the raw (H, W, 3) pixels of an array. notes: sentences
    that the caller should pass on to the user. multi_hot: int8 (N, C), of multi-label targets: 1 for a class
    that is present, 0 for one that is absent, -1 for one that is not counted; `labels` then holds the first
    class that is present, and -1 for a video that shows none.
    """

    target: str
    split: str
    kind: Literal["array", "files", "video"]
    classes: tuple[str, ...]
    ids: NDArray[np.int64]
    labels: Labels
    sizes: NDArray[np.int32]
    contents: NDArray[np.uint8]
    access: Images
    notes: tuple[str, ...] = ()
    multi_hot: MultiHot | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def is_labelled(self) -> Mask:
        """Whether each sample has a label: bool (N,). Those without have -1, or nothing but -1."""
        known = self.labels >= 0 if self.multi_hot is None else (self.multi_hot >= 0).any(axis=1)
        return np.asarray(known)

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """How many samples show each class, of those with a label: int64 (C,)."""
        if self.multi_hot is not None:
            return np.asarray((self.multi_hot == 1).sum(axis=0))
        return np.bincount(self.labels[self.labelled], minlength=len(self.classes))

    @property
    def labelled(self) -> Positions:
        """The rows of the samples that have a label, ascending."""
        return np.flatnonzero(self.is_labelled)

    def hide_labels(self, mask: Mask) -> Dataset:
        """The same samples, without the labels of those in `mask`, bool (N,)."""
        multi_hot = self.multi_hot
        if multi_hot is not None:
            multi_hot = np.where(mask[:, None], np.int8(-1), multi_hot)
        return replace(self, labels=np.where(mask, -1, self.labels), multi_hot=multi_hot)

    @property
    def content_sha256(self) -> str:
        """Hex digest of the ordered ids and contents."""
        return hashlib.sha256(self.ids.astype("<i8").tobytes() + self.contents.tobytes()).hexdigest()

    @property
    def classes_sha256(self) -> str:
        """Hex digest of the class names in label order, and of every sample's label."""
        names = "".join(f"{name}\n" for name in self.classes)
        return hashlib.sha256(os.fsencode(names) + b"\n" + self.truth_bytes).hexdigest()

    @property
    def truth(self) -> Labels | MultiHot:
        """What a student learns: `labels`, int64 (N,), or `multi_hot`, int8 (N, C)."""
        return self.labels if self.multi_hot is None else self.multi_hot

    @property
    def truth_bytes(self) -> bytes:
        """`truth` as bytes, for a fingerprint."""
        return self.truth.astype("<i8" if self.multi_hot is None else "i1").tobytes()

    def name_of(self, row: int) -> str:
        """The name of a row's image, for messages."""
        return self.access.name_of(row)

    def pixels_of(self, row: int) -> Pixels:
        """Reference decode of one row: uint8 (H, W, 3), RGB, the caller's own copy."""
        return self.access.pixels_of(row)

    def images(self, rows: Positions) -> Pixels:
        """Several rows whose images have one size: uint8 (n, H, W, 3), the caller's own copy."""
        return self.access.stack(rows)

    def encoded(self, row: int) -> bytes:
        """One row as a JPEG or PNG file. Formats that decoders disagree about come as an 8-bit RGB PNG of
        `pixels_of`.
        """
        return self.access.encoded(row)

    def take(self, rows: Positions) -> Dataset:
        """The subset `rows`, in that order, which keeps its ids."""
        return replace(
            self,
            ids=self.ids[rows],
            labels=self.labels[rows],
            sizes=self.sizes[rows],
            contents=self.contents[rows],
            access=self.access.take(rows),
            multi_hot=None if self.multi_hot is None else self.multi_hot[rows],
        )

    def limit(self, n: int) -> Dataset:
        """A fixed subset of n samples with equal shares of every class up to rounding; the whole dataset if
        it has no more than n.

        The draw depends on ids and labels only, and limit(100) lies within limit(200). Raises TargetError if
        n is below the number of classes.
        """
        if n < min(len(self.classes), len(self)):
            raise TargetError(
                f"{self.target} {self.split}: a limit of {n} leaves classes without a sample, "
                f"expected at least {len(self.classes)}; raise --limit"
            )
        if n >= len(self):
            return self
        return self.take(subset.stratify(self.labels, subset.draws(self.ids), n))


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSpec:
    """One target dataset: its identity, its place, and the size and crops that student and sources see.

    `name` is what runs and stores record. For a user's folder (`is_own_folder`) it is the family and the
    folder's name only: contents identify a folder, its place does not. A family that needs more fields to
    read its files derives a spec of its own.
    """

    name: str
    family: str  # `Family.name`
    n_classes: int | None  # None: as many as the folder has
    side_px: int  # the square that the student sees
    short_px: int  # evaluation: the short side is resized to this, then the central square is cut
    plan_kind: Literal["pad-crop-flip", "random-resized-crop-flip", "corner-clip"]
    source_scale: Fraction  # side of what the sources see / side_px, rounded down
    how_to_prepare: str  # a clause for the end of an error message
    pad: int = 0  # pad-crop-flip: largest shift, in pixels of the image as stored
    flip: float = 0.5  # probability of a left-right mirror
    root: Path = Path()  # folder of the files: relative to the data directory, or absolute
    holds_videos: bool = False
    is_multilabel: bool = False  # several labels per image
    is_own_folder: bool = False  # the user's, named by its path

    @property
    def as_given(self) -> str:
        """The name for a command line, which for a user's folder holds the whole path."""
        return f"{self.family}:{self.root}" if self.is_own_folder else self.name

    @property
    def slug(self) -> str:
        """The recorded name as any file system takes it; see `target_slug`."""
        return file_slug(self.name.replace(":", "-", 1) if self.is_own_folder else self.name)


S = TypeVar("S", bound=DatasetSpec)


class Family(ABC, Generic[S]):
    """How the targets of one family are named, obtained, prepared and loaded.

    `data_dir` holds datasets and is read only, except by `obtain`; `index_dir` keeps what was learned about
    their files. All methods raise TargetError for what is missing or damaged.
    """

    name: str
    targets: tuple[S, ...] = ()  # those that have a name of their own
    is_path = False  # whether NAME:PATH is the user's own data at PATH
    what = "folder"  # that PATH names
    official_splits: tuple[str, ...] = ()  # "1", ... where TARGET:1 is one of several official divisions
    has_labels = True  # False: only good as a pool of samples without labels
    is_bundled = False  # comes with a Python package, so there are no files to look for

    @abstractmethod
    def load(self, spec: S, split: str, data_dir: Path, index_dir: Path) -> Dataset:
        """One split, validated: "train", "test", or "val" where `has_val`."""

    @abstractmethod
    def is_prepared(self, spec: S, split: str, data_dir: Path, index_dir: Path) -> bool:
        """Whether the files of a split are there, by a cheap look."""

    def from_path(self, path: str) -> S:
        """The spec of the user's folder at `path`, where `is_path`."""
        raise NotImplementedError

    def of_split(self, spec: S, split: str) -> S:
        """The spec of one of the `official_splits` of a target."""
        raise NotImplementedError

    def lies_there(self, spec: S, data_dir: Path) -> bool:
        """Whether a user's own data are where `spec` says."""
        return (data_dir / spec.root).is_dir()

    def has_several_labels(self, spec: S) -> bool:
        """Whether images have several labels; of a user's own data, by a look at what says them."""
        return spec.is_multilabel

    def has_val(self, spec: S, data_dir: Path) -> bool:  # noqa: ARG002
        """Whether there is a third split, "val"."""
        return False

    def has_unlabelled(self, spec: S, data_dir: Path) -> bool:  # noqa: ARG002
        """Whether there is a split of samples without labels, `UNLABELLED`."""
        return False

    def pool_split(self, spec: S, data_dir: Path) -> str:  # noqa: ARG002
        """The split that another target's pool takes."""
        return "train" if self.has_labels else UNLABELLED

    def obtain(self, spec: S, data_dir: Path, *, download: bool) -> None:
        """Put the files into `data_dir` if they are not there; most families leave that to the user.

        Raises DownloadError if fetching fails.
        """

    def prepare(
        self, spec: S, data_dir: Path, index_dir: Path, *, packing: Packing, allow_missing: bool
    ) -> None:
        """Do what `load` needs to be done once, and does not do itself.

        packing: how frames of videos are kept. allow_missing: go on without files that cannot be used.
        """


def file_slug(name: str) -> str:
    """A name that any file system takes."""
    slug = re.sub(r"[^\w.-]", "_", name)
    if len(slug.encode()) > _LONGEST_SLUG:
        return f"{slug[: _LONGEST_SLUG // 8]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"
    return slug


def no_target(spec: DatasetSpec) -> str:
    """The message about samples without labels that are named as a target."""
    name = shown(spec.as_given)
    return f"{name} has no labels, so it is no target; give it with --unlabelled beside a --target"


def own_folder(family: str, path: str, what: str = "folder") -> Path:
    """The absolute path of a user's folder, or of `what` else. Raises TargetError for a URL, or a path that
    names none.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", path):
        raise TargetError(
            f"target {family}:{path} is a URL, expected a local {what}; copy or mount it there, or pack "
            f"images once, where they are on a disk, with `sskt prepare --target {family}:PATH --pack URL`, "
            f"and name --target tar:URL"
        )
    root = absolute_path(path)
    if not path or not root.name:
        raise TargetError(f"target {family}:{path} names no {what}, expected {family}:PATH")
    return root


def absolute_path(path: str) -> Path:
    """A path as a user writes it, made absolute; links keep their names."""
    return Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100  (resolve() would follow a link's name away)
