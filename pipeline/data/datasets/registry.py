"""The registry of targets: what a dataset's spec says, how a family of targets is read, and names looked up.

A family is one class in one file, registered by one line in `pipeline.data.datasets`. Whoever asks something
of a target asks its spec or its family, never its name. Recipes of training (epochs, rates) are in
`sskt.recipes`.
"""

from __future__ import annotations

import hashlib
import os
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pipeline.data.datasets.dataset import Dataset
from pipeline.data.datasets.other_tasks import names_other_task
from pipeline.data.datasets.video.pack import Packing
from sskt.errors import TargetError, shown

SPLITS = ("train", "test")
UNLABELLED = "unlabelled"  # a split of samples without labels, and the family of folders of such images
UNLABELLED_VIDEOS = "unlabelled-videos"  # the family of folders of videos without labels

_LONGEST_SLUG = 160  # bytes: it is part of the names of files and folders, which take 255


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


FAMILIES: dict[str, Family[Any]] = {}
TARGETS: dict[str, DatasetSpec] = {}  # those that have a name of their own


def register(family: Family[Any]) -> None:
    """Make a family's targets known by name.

    Raises TargetError for a name that is taken, or a target whose spec names another family.
    """
    if family.name in FAMILIES:
        raise TargetError(f"target family {family.name!r} is registered already; choose another name")
    for spec in family.targets:
        if spec.name in TARGETS:
            raise TargetError(
                f"target {spec.name!r} is registered already, by {TARGETS[spec.name].family}; choose another "
                f"name"
            )
        if spec.family != family.name:
            raise TargetError(
                f"target {spec.name!r} is of family {spec.family!r}, expected {family.name!r}, which "
                f"registers it"
            )
    FAMILIES[family.name] = family
    TARGETS.update({spec.name: spec for spec in family.targets})


def family_of(spec: DatasetSpec) -> Family[Any]:
    """The family that reads a target."""
    return FAMILIES[spec.family]


def path_families() -> list[Family[Any]]:
    """The families whose targets are named by a path, such as imagefolder:PATH."""
    return [family for family in FAMILIES.values() if family.is_path]


def path_family(name: str) -> Family[Any] | None:
    """The family of a name such as imagefolder:PATH; None for names of other forms."""
    return next((family for family in path_families() if name.startswith(f"{family.name}:")), None)


def parse_target(name: str) -> DatasetSpec:
    """The spec of a registered name, or of FAMILY:PATH; reads nothing from disk.

    "ucf101:2" is the second official split of a target that has several. Raises TargetError if there is none.
    """
    if name in TARGETS:
        return TARGETS[name]

    head, _, rest = name.partition(":")
    spec: DatasetSpec | None = None
    if family := path_family(name):
        spec = family.from_path(rest)
    elif head in TARGETS and (family := family_of(TARGETS[head])).official_splits:
        spec = family.of_split(TARGETS[head], rest)
    if spec is None:
        with_labels = [family for family in path_families() if family.has_labels]
        *names, last = [*TARGETS, *(f"{family.name}:PATH" for family in with_labels)]
        raise TargetError(
            f"target {name!r} is not known, expected one of {', '.join(names)} or {last}"
            f"{names_other_task(name)}"
        )
    return spec


def target_slug(name: str) -> str:
    """A name that any file system takes: imagefolder:/data/my scenes -> imagefolder-my_scenes."""
    family = path_family(name)
    if family is not None:
        path = name.removeprefix(f"{family.name}:")
        name = f"{family.name}-{_absolute(path).name}"
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
    root = _absolute(path)
    if not path or not root.name:
        raise TargetError(f"target {family}:{path} names no {what}, expected {family}:PATH")
    return root


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100  (resolve() would follow a link's name away)
