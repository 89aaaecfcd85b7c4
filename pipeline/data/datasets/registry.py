"""What a user can name as a target dataset, as frozen data: where its files lie and how its pictures are
shown.

The recipes of training (epochs, rates) are in `sskt.recipes`; reading files is in the neighbours of this one.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

from sskt.errors import TargetError

SPLITS = ("train", "test")
IMAGEFOLDER = "imagefolder:"
VIDEOFOLDER = "videofolder:"

_LONGEST_SLUG = 160  # bytes: it is part of the names of files and folders, which take 255
_SMALL_PICTURE_SCALE = Fraction(7, 3)  # docs/method.md, section 2.4: 32 -> 74 and 96 -> 224


@dataclass(frozen=True, slots=True)
class Part:
    """One binary file of pictures; `labels` names the file of their labels if these do not stand before each
    picture.
    """

    pixels: str
    n_images: int
    labels: str | None = None


@dataclass(frozen=True, slots=True)
class Binary:
    """An official binary archive and the layout of its files.

    A record is `label_bytes` bytes, of which the last is the label, then three planes (R, G, B) of square
    pictures.
    """

    url: str
    md5: str
    folder: str
    class_names: str
    train: tuple[Part, ...]
    test: tuple[Part, ...]
    label_bytes: int
    first_label: int = 0
    column_major: bool = False  # each plane is stored column by column

    def parts(self, split: str) -> tuple[Part, ...]:
        """The files of one split."""
        return self.train if split == "train" else self.test


@dataclass(frozen=True, slots=True)
class Videos:
    """Where videos and their lists lie below a target's root; without `lists`, class folders tell."""

    folders: tuple[str, ...] = ()  # of class folders of videos, or of folders of extracted frames
    lists: str | None = None  # folder of the official lists
    annotation: str = ""  # JSON file in the form of 3D-ResNets-PyTorch, where there is no such folder
    split: int = 1


@dataclass(frozen=True, slots=True)
class Devkit:
    """A year of VOCdevkit and the lists of its splits."""

    year: str
    train: str
    test: str


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """One target dataset: its identity, its place, and the pictures that the student and the sources see.

    `name` is what runs and stores record; for imagefolder:PATH and videofolder:PATH it holds the folder's
    name only, since the contents and not the place identify a folder. Files lie under `root`, which is
    relative to the data directory or absolute.
    """

    name: str
    kind: Literal["array", "files", "video"]
    n_classes: int | None  # None: as many as the folder has
    side_px: int  # the square that the student sees
    short_px: int  # evaluation: short side resized to this before the central square is cut
    plan_kind: Literal["pad-crop-flip", "random-resized-crop-flip", "corner-clip"]
    source_scale: Fraction  # side of what the sources see / side_px, rounded down
    how_to_prepare: str  # a clause for the end of an error message
    pad: int = 0  # pad-crop-flip: largest shift, in pixels of the picture as stored
    flip: float = 0.5  # probability of a left-right mirror
    root: Path | None = None
    binary: Binary | None = None
    videos: Videos | None = None
    devkit: Devkit | None = None

    @property
    def as_given(self) -> str:
        """What to call it by on a command line: of a folder, its kind and whole path."""
        if self.root is None or not self.root.is_absolute():
            return self.name
        return f"{self.name.partition(':')[0]}:{self.root}"


def parse_target(name: str) -> DatasetSpec:
    """The spec of a registry name, of imagefolder:PATH or videofolder:PATH; reads nothing from disk.

    "ucf101:2" is the second official split of a target that has several. Raises TargetError if there is none.
    """
    if name in TARGETS:
        return TARGETS[name]
    if name.startswith(IMAGEFOLDER):
        return _imagefolder(name.removeprefix(IMAGEFOLDER))
    if name.startswith(VIDEOFOLDER):
        return _videofolder(name.removeprefix(VIDEOFOLDER))
    base, _, split = name.partition(":")
    if base in TARGETS and TARGETS[base].videos is not None:
        return _of_split(TARGETS[base], split)
    raise TargetError(
        f"target {name!r} is not known, expected one of {', '.join(TARGETS)}, {IMAGEFOLDER}PATH or "
        f"{VIDEOFOLDER}PATH"
    )


def target_slug(name: str) -> str:
    """A name that any file system takes: imagefolder:/data/my scenes -> imagefolder-my_scenes."""
    for kind in (IMAGEFOLDER, VIDEOFOLDER):
        if name.startswith(kind):
            name = f"{kind[:-1]}-{_folder_name(name.removeprefix(kind))}"
    slug = re.sub(r"[^\w.-]", "_", name)
    if len(slug.encode()) > _LONGEST_SLUG:
        return f"{slug[: _LONGEST_SLUG // 8]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"
    return slug


def _imagefolder(path: str) -> DatasetSpec:
    """A user's own folder of pictures, shown the ImageNet way."""
    root = _own_folder(IMAGEFOLDER, path)
    prepare = (
        f"put the pictures as {root}/train/CLASS/*.jpg and {root}/val/CLASS/*.jpg, "
        f"or as {root}/CLASS/*.jpg to have a fifth of each class held out"
    )
    return _images_224(f"{IMAGEFOLDER}{root.name}", None, root, prepare)


def _videofolder(path: str) -> DatasetSpec:
    """A user's own folder of videos."""
    root = _own_folder(VIDEOFOLDER, path)
    prepare = (
        f"put the videos as {root}/train/CLASS/*.mp4 and {root}/val/CLASS/*.mp4, or as {root}/CLASS/*.mp4 "
        f"to have a fifth of each class held out; a folder of frames stands for a video as well"
    )
    return _clips_112(f"{VIDEOFOLDER}{root.name}", None, root, prepare, Videos())


def _own_folder(kind: str, path: str) -> Path:
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", path):
        raise TargetError(
            f"target {kind}{path} is a URL, expected a local folder; copy the files to a disk, or mount "
            f"them, and give that path (--cache-dir may be a URL: stores can lie in an object store)"
        )
    root = Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100  (resolve() would follow a link's name away)
    if not path or not root.name:
        raise TargetError(f"target {kind}{path} names no folder, expected {kind}PATH")
    return root


def _of_split(spec: DatasetSpec, split: str) -> DatasetSpec:
    """One of the three official splits of a target of videos; the first has the plain name."""
    assert spec.videos is not None  # noqa: S101 - asked of those only
    if split not in ("1", "2", "3"):
        raise TargetError(f"target {spec.name}:{split}: its splits are 1, 2 and 3")
    number = int(split)
    annotation = spec.videos.annotation.replace("1.json", f"{number}.json")
    videos = replace(spec.videos, split=number, annotation=annotation)
    return replace(spec, name=spec.name if number == 1 else f"{spec.name}:{number}", videos=videos)


def _folder_name(path: str) -> str:
    return Path(os.path.abspath(Path(path).expanduser())).name  # noqa: PTH100


def _images_224(name: str, n_classes: int | None, root: Path, how_to_prepare: str) -> DatasetSpec:
    """JPEG and PNG files shown the ImageNet way: random-resized crops of 224, centre crop of 256 for
    evaluation.
    """
    return DatasetSpec(
        name=name,
        kind="files",
        n_classes=n_classes,
        side_px=224,
        short_px=256,
        plan_kind="random-resized-crop-flip",
        source_scale=Fraction(1),
        how_to_prepare=how_to_prepare,
        root=root,
    )


def _voc(name: str, devkit: Devkit) -> DatasetSpec:
    """PASCAL VOC, several labels a picture, shown the ImageNet way."""
    prepare = (
        f"put the official {devkit.year} into DATA_DIR/voc/VOCdevkit/{devkit.year}/ (DATA_DIR is --data-dir)"
    )
    spec = _images_224(name, 20, Path("voc/VOCdevkit"), prepare)
    return replace(spec, devkit=devkit)


def _clips_112(
    name: str, n_classes: int | None, root: Path, how_to_prepare: str, videos: Videos
) -> DatasetSpec:
    """Videos shown the paper's way: clips of 112 px by multi-scale corner crops, the central square for
    evaluation; sources see their frames at twice that.
    """
    return DatasetSpec(
        name=name,
        kind="video",
        n_classes=n_classes,
        side_px=112,
        short_px=112,
        plan_kind="corner-clip",
        source_scale=Fraction(2),
        how_to_prepare=how_to_prepare,
        root=root,
        videos=videos,
    )


def _official_videos(
    name: str, n_classes: int, folders: tuple[str, ...], lists: str, annotation: str
) -> DatasetSpec:
    prepare = (
        f"put the official videos into DATA_DIR/{name}/{folders[0]}/CLASS/ and their lists into "
        f"DATA_DIR/{name}/{lists}/ (DATA_DIR is --data-dir)"
    )
    return _clips_112(name, n_classes, Path(name), prepare, Videos(folders, lists, annotation))


def _official_folders(name: str, n_classes: int, class_folder: str, as_unpacked: str) -> DatasetSpec:
    paths = " and ".join(f"DATA_DIR/{name}/{split}/{class_folder}/" for split in ("train", "val"))
    prepare = (
        f"put the official pictures into {paths}, or unpack {as_unpacked} there (DATA_DIR is --data-dir)"
    )
    return _images_224(name, n_classes, Path(name), prepare)


def _small_images(name: str, n_classes: int, side_px: int, binary: Binary) -> DatasetSpec:
    """The paper's small-picture targets: shifts of up to 4 pixels, mirrored or not."""
    archive = binary.url.rpartition("/")[2]
    return DatasetSpec(
        name=name,
        kind="array",
        n_classes=n_classes,
        side_px=side_px,
        short_px=side_px,
        plan_kind="pad-crop-flip",
        source_scale=_SMALL_PICTURE_SCALE,
        how_to_prepare=f"allow the download, or put {archive} from {binary.url} into DATA_DIR",
        pad=4,
        binary=binary,
    )


_CIFAR10 = Binary(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    folder="cifar-10-batches-bin",
    class_names="batches.meta.txt",
    train=tuple(Part(f"data_batch_{batch}.bin", 10_000) for batch in range(1, 6)),
    test=(Part("test_batch.bin", 10_000),),
    label_bytes=1,
)
_CIFAR100 = Binary(
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
    folder="cifar-100-binary",
    class_names="fine_label_names.txt",
    train=(Part("train.bin", 50_000),),
    test=(Part("test.bin", 10_000),),
    label_bytes=2,  # coarse, fine
)
_STL10 = Binary(
    url="http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
    md5="91f7769df0f17e558f3565bffb0c7dfb",
    folder="stl10_binary",
    class_names="class_names.txt",
    train=(Part("train_X.bin", 5_000, "train_y.bin"),),
    test=(Part("test_X.bin", 8_000, "test_y.bin"),),
    label_bytes=0,
    first_label=1,
    column_major=True,
)
_DIGITS = DatasetSpec(
    name="digits",
    kind="array",
    n_classes=10,
    side_px=16,
    short_px=16,
    plan_kind="pad-crop-flip",
    source_scale=Fraction(2),
    how_to_prepare="install scikit-learn, which carries them",
    pad=1,  # of 8 stored pixels
    flip=0.0,  # a mirrored digit is another sign
)
_ALL = (
    _small_images("cifar10", 10, 32, _CIFAR10),
    _small_images("cifar100", 100, 32, _CIFAR100),
    _small_images("stl10", 10, 96, _STL10),
    _official_folders(
        "imagenet", 1000, "WNID", "the validation pictures into val/ and ILSVRC2012_devkit_t12/"
    ),
    _official_folders(
        "places365",
        365,
        "CLASS",
        "data_256_standard/, val_256/ and the lists (places365_train_standard.txt, ...)",
    ),
    _voc("voc", Devkit("VOC2012", "train", "val")),
    _voc("voc2007", Devkit("VOC2007", "trainval", "test")),
    _official_videos("ucf101", 101, ("UCF-101", "jpg", "frames"), "ucfTrainTestlist", "ucf101_01.json"),
    _official_videos(
        "hmdb51", 51, ("hmdb51_org", "jpg", "frames"), "testTrainMulti_7030_splits", "hmdb51_1.json"
    ),
    _DIGITS,
)
TARGETS = {spec.name: spec for spec in _ALL}
