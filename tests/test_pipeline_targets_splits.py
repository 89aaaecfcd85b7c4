"""Split folders by any name: what they are taken for, what is said of it, and what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from listening import Remarks
from PIL import Image
from videos import make_video

from pipeline import api
from pipeline.api import Paths, open_dataset
from pipeline.data.datasets import has_val, load_dataset, parse_target
from pipeline.data.datasets.remarks import empty_classes
from sskt.errors import TargetError


def _fill(root, *folders, n=2):
    """`n` small pictures in each folder, no two alike."""
    for number, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
        for i in range(n):
            Image.new("RGB", (4, 4), (number, i, 0)).save(root / folder / f"{i}.png")
    return root


def _split(root, *names):
    """The same two classes in each of some splits."""
    return _fill(root, *(f"{name}/{c}" for name in names for c in ("a", "b")))


def _load(root, split, tmp_path):
    spec = parse_target(f"imagefolder:{root}")
    return load_dataset(spec, split, data_dir=Path("none"), index_dir=tmp_path / "kept")


def _folders(dataset, root):
    return {Path(dataset.name_of(row)).relative_to(root).parts[0] for row in range(len(dataset))}


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Test"),
        ("training", "validation"),
        ("TRAIN", "DEV"),
        ("train_set", "test-set"),
        ("Train Images", "Eval"),
        ("train2017", "val2017"),
        ("seg_train", "seg_test"),
        ("chestTrain", "chestTest"),
    ],
)
def test_two_splits_by_other_names_are_understood_and_said(tmp_path, train, test):
    root = _split(tmp_path / "fruit", train, test)
    for split, folder in (("train", train), ("test", test)):
        dataset = _load(root, split, tmp_path)
        assert dataset.classes == ("a", "b")
        assert _folders(dataset, root) == {folder}
        assert dataset.labels.tolist() == [0, 0, 1, 1]
        assert dataset.notes == (f"{root}: {train}/ is the train split, {test}/ the test split",)


@pytest.mark.parametrize("val", ["val", "valid", "Validation", "dev"])
def test_three_splits_are_kept_apart(tmp_path, val):
    root = _split(tmp_path / "pets", "train", val, "test")
    for split, folder in (("train", "train"), ("val", val), ("test", "test")):
        assert _folders(_load(root, split, tmp_path), root) == {folder}
    assert has_val(parse_target(f"imagefolder:{root}"), tmp_path)
    shutil.rmtree(root / "test")
    assert not has_val(parse_target(f"imagefolder:{root}"), tmp_path)
    assert _folders(_load(root, "test", tmp_path), root) == {val}, "the only other split scores"
    with pytest.raises(TargetError, match="pets: split is 'val', expected train or test"):
        _load(root, "val", tmp_path)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (
            ["train/a", "train/b", "Training/a", "test/a"],
            "Training/ and train/ both mean the train split; merge",
        ),
        (["train/a", "val/a", "valid/a"], "val/ and valid/ both mean the val split"),
        (
            ["train/a", "train/b", "apple", "pear"],
            "train/ holds class folders .* and apple/, pear/ lie beside",
        ),
        (["train/a", "train/b", "test"], "train/ holds class folders as a split does, and test/ lie beside"),
        (["Test/a", "Test/b", "pear"], "Test/ holds class folders as a split does, and pear/ lie beside"),
        (["train/a", "train/b", "test/a", "a"], "a/ beside the splits train/, test/ has the name of a class"),
        (["Training/a", "Training/b"], "no folder val or test with class folders .* found Training;"),
        (
            ["cat/train", "cat/test", "dog/train", "dog/test"],
            "cat: holds the splits train/, test/, and would be",
        ),
        (
            ["all/Training/a", "all/Test/a"],
            "all: holds the splits Training/, Test/, .*; name .*/all as the target",
        ),
    ],
)
def test_what_cannot_be_told_is_refused_with_what_was_seen(tmp_path, folders, message):
    root = _fill(tmp_path / "pets", *folders)
    with pytest.raises(TargetError, match=message):
        _load(root, "test", tmp_path)


def test_a_lone_test_folder_is_a_split_and_not_a_class(tmp_path):
    root = _fill(tmp_path / "pets", "Test/a", "Test/b")
    dataset = _load(root, "test", tmp_path)
    assert dataset.classes == ("a", "b")
    assert dataset.notes == (f"{root}: Test/ is the test split",)
    with pytest.raises(
        TargetError, match="no folder train with class folders for the train split, found Test;"
    ):
        _load(root, "train", tmp_path)


def test_a_folder_named_as_a_split_that_holds_pictures_is_a_class_and_that_is_said(tmp_path):
    root = _fill(tmp_path / "tubes", "test", "training", "other", n=5)
    dataset = _load(root, "train", tmp_path)
    assert dataset.classes == ("other", "test", "training")
    assert dataset.notes == (
        f"{root}: test/, training/ are taken for classes, since no class folders are in there",
    )
    assert dataset.notes[0] in _load(root, "test", tmp_path).notes


def test_folders_beside_whole_splits_are_left_out_and_named(tmp_path):
    root = _fill(tmp_path / "fruit", "Training/a", "Training/b", "Test/a", "test-multiple", "papers")
    notes = _load(root, "train", tmp_path).notes
    left_out = "2 other folder(s) are left out (papers/, test-multiple/)"
    assert notes[1] == f"{root}: beside the splits Training/, Test/, {left_out}"


def test_classes_that_hold_the_same_folders_are_pointed_out(tmp_path):
    root = _fill(tmp_path / "fruit", "Anlernen/a", "Anlernen/b", "Probe/a", "Probe/b")
    (note,) = _load(root, "train", tmp_path).notes
    assert note.startswith(
        f"{root}: Anlernen/, Probe/ are taken for the classes, and all hold a/, b/; if those"
    )
    (root / "Probe" / "c").mkdir()
    Image.new("RGB", (4, 4)).save(root / "Probe" / "c" / "0.png")
    assert _load(root, "train", tmp_path).notes == ()


def test_a_class_without_a_folder_in_the_test_split_is_named(tmp_path):
    root = _fill(tmp_path / "pets", "train/a", "train/b", "train/c", "test/a", "test/c")
    dataset = _load(root, "test", tmp_path)
    assert empty_classes(dataset) == [
        "imagefolder:pets: the test split has no sample of 1 of the 3 classes (b)"
    ]


def test_videos_have_three_splits_by_other_names(tmp_path):
    root = tmp_path / "clips"
    for split, n in (("TRAIN", 2), ("valid", 1), ("Testing", 1)):
        for label in ("a", "b"):
            for i in range(n):
                make_video(root / split / label / f"{i}.mkv", n=3, mirrored=label == "b")
    said = Remarks()
    paths = Paths(tmp_path / "data", tmp_path / "stores")
    rows = api.prepare(f"videofolder:{root}", paths=paths)
    assert [(row["split"], row["samples"]) for row in rows] == [("train", 4), ("val", 2), ("test", 2)]
    note = f"{root}: TRAIN/ is the train split, valid/ the val split, Testing/ the test split"
    assert said.count(note) >= 1
    dataset = open_dataset(f"videofolder:{root}", "val", paths=paths)
    assert (dataset.split, dataset.classes, dataset.labels.tolist()) == ("val", ("a", "b"), [0, 1])
    assert np.array_equal(dataset.sizes[:, 0], [3, 3])
    shutil.rmtree(root / "Testing")
    with pytest.raises(TargetError, match="split is 'val', expected train or test"):
        open_dataset(f"videofolder:{root}", "val", paths=paths)
