"""Folders of pictures: which files make a split, in which order, with which labels, and what is refused."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.datasets import load_dataset, parse_target, prepared
from sskt.errors import TargetError

pytestmark = pytest.mark.usefixtures("narrow")

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real pictures of ../shared/data are not here")


def _draw(path, seed=0, size=(12, 9), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, **options)


def _load(root, split, tmp_path):
    spec = parse_target(f"imagefolder:{root}")
    return load_dataset(spec, split, data_dir=Path("no such data"), index_dir=tmp_path / "kept")


def _names(dataset, root):
    return [str(Path(dataset.name_of(row)).relative_to(root)) for row in range(len(dataset))]


@needs_data
def test_scene15_is_read_as_pathlib_and_pillow_read_it(tmp_path):
    dataset = _load(DATA / "scene15", "train", tmp_path)
    root = DATA / "scene15" / "train"
    classes = sorted(folder.name for folder in root.iterdir())
    expected = [(name, path) for name in classes for path in sorted((root / name).iterdir())]
    assert dataset.classes == tuple(classes)
    assert [dataset.name_of(row) for row in range(len(dataset))] == [str(path) for _, path in expected]
    assert [classes[label] for label in dataset.labels] == [name for name, _ in expected]
    assert dataset.ids.tolist() == list(range(450))
    for row in range(0, 450, 37):
        path = expected[row][1]
        with Image.open(path) as image:
            assert dataset.sizes[row].tolist() == [image.height, image.width]
            np.testing.assert_array_equal(dataset.pixels_of(row), np.asarray(image.convert("RGB")))
        assert dataset.encoded(row) == path.read_bytes()
        assert dataset.contents[row].tobytes() == hashlib.sha256(path.read_bytes()).digest()[:16]
    test = _load(DATA / "scene15", "test", tmp_path)
    note = f"{DATA / 'scene15'}: train/ is the train split, val/ the test split"
    assert (len(test), test.classes, test.notes) == (150, dataset.classes, (note,))


@needs_data
def test_imagenet_with_only_val_serves_the_test_split_and_says_what_train_lacks(tmp_path):
    spec = parse_target("imagenet")
    dataset = load_dataset(spec, "test", data_dir=DATA, index_dir=tmp_path)
    assert len(dataset) == len(dataset.classes) == 1000
    assert dataset.labels.tolist() == list(range(1000))
    assert dataset.classes[0] == "n01440764"
    with pytest.raises(
        TargetError, match=r"no folder train .*found val; put the official pictures into DATA_DIR/"
    ):
        load_dataset(spec, "train", data_dir=DATA, index_dir=tmp_path)
    assert prepared(DATA, tmp_path, "test") == ["imagenet", "voc"]
    assert prepared(DATA, tmp_path) == ["voc"]


def test_official_folder_with_too_few_classes_is_refused(tmp_path):
    for name in ("airfield", "alley"):
        _draw(tmp_path / "places365" / "train" / name / "a.jpg")
    with pytest.raises(TargetError, match=r"train: 2 class folders, expected 365; .*imagefolder:"):
        load_dataset(parse_target("places365"), "train", data_dir=tmp_path, index_dir=tmp_path)


def test_absent_data_directory_says_how_to_prepare(tmp_path):
    with pytest.raises(TargetError, match=r"imagenet: no such folder; put the official pictures into"):
        load_dataset(parse_target("imagenet"), "train", data_dir=tmp_path, index_dir=tmp_path)


def test_nested_folders_belong_to_their_class_and_order_is_by_path_parts(tmp_path):
    root = tmp_path / "pets"
    for name in ("a/z.jpg", "a/deep/er/q.PNG", "a-b/x.jpeg", "a/m.JPG"):
        _draw(root / "train" / name, seed=len(name))
    dataset = _load(root, "train", tmp_path)
    assert dataset.classes == ("a", "a-b")
    assert _names(dataset, root / "train") == ["a/deep/er/q.PNG", "a/m.JPG", "a/z.jpg", "a-b/x.jpeg"]
    assert dataset.labels.tolist() == [0, 0, 0, 1]


def test_other_files_are_ignored_and_counted(tmp_path):
    root = tmp_path / "pets"
    for name in ("a/1.jpg", "b/2.jpg", ".cache/3.jpg"):
        _draw(root / "train" / name)
    for name in ("a/notes.txt", "b/Thumbs.db", "b/._2.jpg", "README", "a/list.txt"):
        (root / "train" / name).write_text("x")
    dataset = _load(root, "train", tmp_path)
    assert len(dataset) == 2
    (note,) = dataset.notes
    assert "6 files ignored (2 .txt, " in note
    for kind in ("1 without extension", "1 .db", "1 hidden,", "1 hidden folder"):
        assert kind in note
    (listed,) = (tmp_path / "kept").glob("*-ignored.txt")
    assert str(listed) in note
    assert listed.read_text().splitlines()[1:] == [
        "README\twithout extension",
        "a/list.txt\t.txt",
        "a/notes.txt\t.txt",
        "b/._2.jpg\thidden",
        "b/Thumbs.db\t.db",
    ]


def test_undivided_folder_holds_out_a_fifth_of_each_class(tmp_path):
    root = tmp_path / "birds"
    counts = {"crow": 10, "owl": 23, "rare": 1, "tit": 2}
    for name, n in counts.items():
        for i in range(n):
            _draw(root / name / f"{i:02d}.png", seed=i)
    train, test = _load(root, "train", tmp_path), _load(root, "test", tmp_path)
    assert sorted([*train.ids, *test.ids]) == list(range(36))
    assert np.bincount(test.labels, minlength=4).tolist() == [2, 5, 0, 1]
    everything = sorted(f"{name}/{i:02d}.png" for name, n in counts.items() for i in range(n))
    for dataset in (train, test):
        assert _names(dataset, root) == [everything[i] for i in dataset.ids]
    by_hash = sorted(
        (f"crow/{i:02d}.png" for i in range(10)), key=lambda n: hashlib.sha256(n.encode()).digest()
    )
    assert {n for n in _names(test, root) if n.startswith("crow")} == set(by_hash[:2])
    assert test.notes == (
        f"{root}: has no train/ and val/, so a fixed fifth of each class is held out (8 pictures)",
    )


def test_undivided_folder_stays_divided_alike_when_pictures_change_or_come(tmp_path):
    root = tmp_path / "birds"
    for name in ("crow", "owl"):
        for i in range(15):
            _draw(root / name / f"{i:02d}.png", seed=i)
    before = set(_names(_load(root, "test", tmp_path), root))
    for i in range(15):
        _draw(root / "crow" / f"{i:02d}.png", seed=100 + i)
    assert set(_names(_load(root, "test", tmp_path), root)) == before
    _draw(root / "owl" / "new.png")
    assert len(before - set(_names(_load(root, "test", tmp_path), root))) <= 1


def test_class_that_only_the_test_split_has_is_named(tmp_path):
    for name in ("train/a/1.jpg", "train/b/1.jpg", "val/b/2.jpg", "val/mistake/1.jpg"):
        _draw(tmp_path / "pets" / name)
    with pytest.raises(
        TargetError, match=r"pets/val: class folder mistake does not exist in .*pets/train \(1 such"
    ):
        _load(tmp_path / "pets", "test", tmp_path)
    shutil.rmtree(tmp_path / "pets" / "val" / "mistake")
    dataset = _load(tmp_path / "pets", "test", tmp_path)
    assert (dataset.classes, dataset.labels.tolist()) == (("a", "b"), [1])


def test_folder_named_test_serves_where_there_is_no_val(tmp_path):
    for name in ("train/a/1.jpg", "train/b/1.jpg", "test/a/2.jpg"):
        _draw(tmp_path / "pets" / name)
    assert _names(_load(tmp_path / "pets", "test", tmp_path), tmp_path / "pets") == ["test/a/2.jpg"]


def test_classes_named_train_and_test_are_still_classes(tmp_path):
    for name in ("train/1.jpg", "train/2.jpg", "tram/1.jpg", "tram/2.jpg"):
        _draw(tmp_path / "rails" / name)
    assert _load(tmp_path / "rails", "train", tmp_path).classes == ("train", "tram")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a/1.jpg"], r"one class folder \(a\), expected at least two"),
        (["1.jpg"], "no class folder, expected at least two"),
        (["train/a/1.jpg", "train/b/1.jpg"], r"no folder val or test .* test split, found train;"),
    ],
    ids=["one class", "no class", "no test"],
)
def test_unusable_layouts_are_named(tmp_path, files, message):
    for name in files:
        _draw(tmp_path / "pets" / name)
    with pytest.raises(TargetError, match=message):
        _load(tmp_path / "pets", "test", tmp_path)


def test_empty_class_folder_is_named(tmp_path):
    _draw(tmp_path / "pets" / "a" / "1.jpg")
    for name in ("b", "c"):
        (tmp_path / "pets" / name).mkdir()
    (tmp_path / "pets" / "b" / "readme.txt").write_text("soon")
    with pytest.raises(TargetError, match=r"in class folder b, c; fill or remove it"):
        _load(tmp_path / "pets", "train", tmp_path)


def test_linked_folders_are_followed_and_loops_are_not(tmp_path):
    _draw(tmp_path / "elsewhere" / "1.jpg")
    _draw(tmp_path / "pets" / "a" / "1.jpg")
    (tmp_path / "pets" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "pets" / "a" / "up").symlink_to(tmp_path / "pets" / "a")
    train, test = (_load(tmp_path / "pets", split, tmp_path) for split in ("train", "test"))
    assert sorted(_names(train, tmp_path / "pets") + _names(test, tmp_path / "pets")) == [
        "a/1.jpg",
        "b/1.jpg",
    ]
