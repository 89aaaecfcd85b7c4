"""Which of a user's folders are splits, by their names and by what they hold.

A folder is a split if its name says so (train, Training, valid, TEST, test_set, ...) and class folders lie in
it; a folder of such a name that holds the samples themselves is a class. Beside a train split, `unlabelled`
holds samples without labels, in class folders or not. What stays ambiguous is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.datasets.class_folders import class_folders
from pipeline.data.datasets.dataset import UNLABELLED, DatasetSpec
from pipeline.data.datasets.other_tasks import require_classes
from sskt.errors import TargetError, few

TRAIN, VAL, TEST = "train", "val", "test"
_WORDS = {
    TRAIN: ("train", "training"),
    VAL: ("val", "valid", "validation", "validate", "dev", "development", "eval", "evaluation"),
    TEST: ("test", "testing"),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}
_MORE = r"(set|data|dataset|images?|pictures?|photos?|videos?|clips?|split|folder)?"
_UNLABELLED_NAME = re.compile("unlabell?ed" + _MORE)
_NAMED = 5  # folders named in a message


@dataclass(frozen=True, slots=True)
class Layout:
    """How a folder is divided: the folder of each split, or no split at all (`divided` is False).

    Where there is no test folder, the val folder is the test split; `UNLABELLED` is among them where there is
    such a folder. `notes` says how the folders were understood.
    """

    root: Path
    folders: Mapping[str, Path]
    notes: tuple[str, ...] = ()
    divided: bool = True

    def folder(self, split: str, how_to_prepare: str) -> Path:
        """The folder that holds the classes of a split. Raises TargetError if names is none."""
        if not self.divided:
            return self.root
        if split not in self.folders:
            wanted = "val or test" if split == TEST else split
            names = ", ".join(class_folders(self.root)[:_NAMED]) or "none"
            raise TargetError(
                f"{self.root}: no folder {wanted} with class folders for the {split} split, found {names}; "
                f"{how_to_prepare}"
            )
        return self.folders[split]

    @property
    def labelled(self) -> Mapping[str, Path]:
        """The folders whose samples have labels."""
        return {split: folder for split, folder in self.folders.items() if split != UNLABELLED}


def layout_of(root: Path, *, videos: bool) -> Layout:
    """Tell splits from classes among the folders in `root`; in class folders of `videos`, a folder may be the
    frames of one.

    Raises TargetError, naming the folders, if they are ambiguous.
    """
    inside = {name: class_folders(root / name) for name in class_folders(root)}
    require_classes(root, inside)
    for name in inside:
        if _meaning(name):
            require_classes(root / name, inside[name])
    unlabelled = [name for name in inside if _UNLABELLED_NAME.fullmatch(_plain(name))]
    named = {name: split for name, below in inside.items() if below and (split := _meaning(name))}
    named = named or _splits_by_part_of_name(
        {name: inside[name] for name in inside if name not in unlabelled}
    )
    if not named:
        _refuse_splits_in_classes(root, inside)
        return Layout(root, {}, _note_classes(root, inside, videos=videos), divided=False)
    splits: dict[str, str] = {}
    for name, split in named.items():
        if split in splits:
            raise TargetError(
                f"{root}: {splits[split]}/ and {name}/ both mean the {split} split; merge them, or rename one"
            )
        splits[split] = name
    splits = {split: splits[split] for split in _WORDS if split in splits}
    if len(unlabelled) > 1:
        raise TargetError(f"{root}: {_list(unlabelled)} both mean images without labels; merge them")
    notes = _note_others(root, inside, splits, unlabelled)
    if VAL in splits and TEST not in splits:
        splits[TEST] = splits.pop(VAL)
    if any(name != split for split, name in splits.items()):
        notes = (f"{root}: {_sentence(splits)}", *notes)
    folders = {split: root / splits[split] for split in _WORDS if split in splits}
    if unlabelled:
        folders[UNLABELLED] = root / unlabelled[0]
    return Layout(root, folders, notes)


def has_val(spec: DatasetSpec, data_dir: Path) -> bool:
    """Whether a user's folder is divided into three: train, val and test."""
    return VAL in _folders(spec, data_dir)


def has_unlabelled(spec: DatasetSpec, data_dir: Path) -> bool:
    """Whether a user's folder has samples without labels beside its train split."""
    return UNLABELLED in _folders(spec, data_dir)


def split_named(name: str) -> str | None:
    """The split that a word means, such as Validation or test_set, `UNLABELLED` among them; None: none."""
    if _UNLABELLED_NAME.fullmatch(_plain(name)):
        return UNLABELLED
    return _meaning(name)


def _folders(spec: DatasetSpec, data_dir: Path) -> Mapping[str, Path]:
    root = data_dir / spec.root
    return layout_of(root, videos=spec.holds_videos).folders if root.is_dir() else {}


def _meaning(name: str) -> str | None:
    """The split that a folder's name means, if any: Training, val, test_set, "Test Images", train1, ..."""
    plain = _plain(name)
    for word, split in _SPLIT_OF.items():
        if re.fullmatch(word + _MORE, plain):
            return split
    return None


def _plain(name: str) -> str:
    """A name's letters, small: "Test Images 2" -> "testimages"."""
    return re.sub(r"[\W_\d]+", "", name.casefold())


def _splits_by_part_of_name(inside: Mapping[str, list[str]]) -> dict[str, str]:
    """The splits of folders such as seg_train and seg_test: one part of each name means a split, and all
    their classes are classes of the training folder.
    """
    named = {}
    for name, below in inside.items():
        parts = re.findall(r"[^\W_\d]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name))
        meanings = {_SPLIT_OF[part.casefold()] for part in parts if part.casefold() in _SPLIT_OF}
        if len(meanings) == 1 and len(below) > 1:
            named[name] = meanings.pop()
    training = [set(inside[name]) for name, split in named.items() if split == TRAIN]
    alike = all(set(inside[name]) <= classes for name in named for classes in training)
    return named if training and alike and len(set(named.values())) > 1 else {}


def _note_others(
    root: Path, inside: Mapping[str, list[str]], splits: Mapping[str, str], unlabelled: list[str]
) -> tuple[str, ...]:
    """A note on the folders beside the listed. Raises TargetError where they might be classes."""
    if doubled := [name for name in unlabelled if TRAIN in splits and name in inside[splits[TRAIN]]]:
        raise TargetError(
            f"{root}: {_list(doubled)} lies beside {splits[TRAIN]}/, and a class of that name in it; rename "
            f"one"
        )
    others = [name for name in inside if name not in (*splits.values(), *unlabelled)]
    if not others:
        return ()
    listed, beside = _list(list(splits.values())), _list(others)
    if TRAIN not in splits or len(splits) < 2:
        hold = "holds" if len(splits) == 1 else "hold"
        raise TargetError(
            f"{root}: {listed} {hold} class folders as a split does, and {beside} lie beside; expected "
            f"splits alone (train/ and val/ or test/) or classes alone; move or rename what does not belong"
        )
    if doubled := [name for name in others if name in inside[splits[TRAIN]]]:
        raise TargetError(
            f"{root}: {_list(doubled)} beside the splits {listed} has the name of a class in them; move its "
            f"samples into a split, or elsewhere"
        )
    return (f"{root}: beside the splits {listed}, {len(others)} other folder(s) are left out ({beside})",)


def _refuse_splits_in_classes(root: Path, inside: Mapping[str, list[str]]) -> None:
    """Raise TargetError if class folders are themselves divided into splits."""
    for name, below in inside.items():
        meanings = {split: each for each in below if (split := _meaning(each))}
        if TRAIN in meanings and len(meanings) > 1:
            splits = _list([meanings[split] for split in _WORDS if split in meanings])
            raise TargetError(
                f"{root / name}: holds the splits {splits}, and would be taken for a "
                f"class; name {root / name} as the target, or put the splits above the classes "
                f"({root}/train/CLASS/)"
            )


def _note_classes(root: Path, inside: Mapping[str, list[str]], *, videos: bool) -> tuple[str, ...]:
    """A note if a class has the name of a split, or if all classes hold the same folders, as splits would."""
    if named := [name for name in inside if _meaning(name)]:
        taken = "is taken for a class" if len(named) == 1 else "are taken for classes"
        return (f"{root}: {_list(named)} {taken}, since no class folders are in there",)
    if named := [name for name in inside if _UNLABELLED_NAME.fullmatch(_plain(name))]:
        note = (
            f"{root}: {_list(named)} is taken for a class, since no train/ lies beside it; if its samples "
            f"have no label, move the classes into {root}/train/"
        )
        return (note,)
    sets = {tuple(below) for below in inside.values()}
    if not videos and len(inside) > 1 and len(sets) == 1 and len(next(iter(sets))) > 1:
        below = _list(list(next(iter(sets))))
        note = (
            f"{root}: {_list(list(inside))} are taken for the classes, and all hold {below}; if those are "
            f"the classes and these the splits, rename these to train and test"
        )
        return (note,)
    return ()


def _sentence(splits: Mapping[str, str]) -> str:
    """Training/ is the train split, Test/ the test split."""
    words = [f"{splits[split]}/ {{}}the {split} split" for split in (TRAIN, VAL, TEST) if split in splits]
    return ", ".join([words[0].format("is "), *(word.format("") for word in words[1:])])


def _list(names: list[str]) -> str:
    return few([f"{name}/" for name in names])
