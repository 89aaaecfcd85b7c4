"""One split of a target: which samples there are, what each one is, and its pixels.

A sample's id is its row in the full split (or in the full listing that splits are drawn from). A subset keeps
the ids, by which labels and logits are looked up.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.data.datasets import decode, subset
from sskt.errors import TargetError

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
class ArrayImages:
    """Images of one size in memory: `pixels` uint8 (N_full, H, W, 3), and each row's position in it, int64
    (N,).
    """

    source: str  # e.g. "cifar10 train"
    pixels: Pixels
    positions: Positions

    def name_of(self, row: int) -> str:
        """See `Images.name_of`."""
        return f"{self.source} picture {self.positions[row]}"

    def pixels_of(self, row: int) -> Pixels:
        """See `Images.pixels_of`."""
        image: Pixels = self.pixels[self.positions[row]].copy()
        return image

    def encoded(self, row: int) -> bytes:
        """See `Images.encoded`."""
        return decode.to_png(self.pixels_of(row))

    def stack(self, rows: Positions) -> Pixels:
        """See `Images.stack`."""
        return self.pixels[self.positions[rows]]

    def take(self, rows: Positions) -> ArrayImages:
        """See `Images.take`; the pixels are shared, not copied."""
        return replace(self, positions=self.positions[rows])


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


def array_dataset(
    target: str,
    split: str,
    classes: tuple[str, ...],
    pixels: Pixels,
    labels: Labels,
    ids: NDArray[np.int64],
) -> Dataset:
    """A dataset of images in memory.

    pixels: uint8 (N_full, H, W, 3). labels: int64 (N_full,). ids: int64 (N,), the rows of both that belong to
    this split.
    """
    contents = b"".join(decode.content_of(pixels[i].data) for i in ids)
    return Dataset(
        target=target,
        split=split,
        kind="array",
        classes=classes,
        ids=ids,
        labels=labels[ids],
        sizes=np.tile(np.array(pixels.shape[1:3], dtype=np.int32), (len(ids), 1)),
        contents=np.frombuffer(contents, dtype=np.uint8).reshape(len(ids), 16),
        access=ArrayImages(f"{target} {split}", pixels, ids),
    )
