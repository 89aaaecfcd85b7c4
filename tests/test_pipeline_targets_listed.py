"""ImageNet's devkit and Places365's lists, against torchvision's own readers of the same files."""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from torchvision.datasets import Places365, imagenet

from pipeline.data.datasets import load_dataset, parse_target, prepared
from sskt.errors import TargetError

DATA = Path(__file__).parents[2] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the real pictures of ../shared/data are not here")

_PARENTS = 3  # synsets of meta.mat that are no classes


def _images(n):
    """Real pictures, no two of the same class, in an order that is not the classes'."""
    found = sorted((DATA / "imagenet" / "val").glob("*/*"))
    return [found[row] for row in np.random.default_rng(7).permutation(len(found))[:n]]


def _meta(path, wnids):
    """A meta.mat in the official form: classes in an order of its own, then synsets with children."""
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height")
    synsets = np.zeros((len(wnids) + _PARENTS, 1), dtype=[(field, object) for field in fields])
    for row in range(len(synsets)):
        parent = row >= len(wnids)
        wnid = f"n9{row:07d}" if parent else wnids[row]
        children = np.array([[1.0, 2.0]]) if parent else np.zeros((1, 0))
        synsets[row, 0] = (row + 1, wnid, f"words of {wnid}", "gloss", 2 if parent else 0, children, 0)
    path.parent.mkdir(parents=True)
    scipy.io.savemat(path, {"synsets": synsets})


@pytest.fixture
def ilsvrc(tmp_path):
    """(data_dir, WNID of each validation picture): 12 real pictures in a flat val/, devkit beside it."""
    root = tmp_path / "data" / "imagenet"
    wnids = [folder.name for folder in sorted((DATA / "imagenet" / "val").iterdir())]
    order = [wnids[i] for i in np.random.default_rng(3).permutation(len(wnids))]
    devkit = root / "ILSVRC2012_devkit_t12" / "data"
    _meta(devkit / "meta.mat", order)
    (root / "val").mkdir()
    shown = _images(12)
    for number, image in enumerate(shown, start=1):
        shutil.copy(image, root / "val" / f"ILSVRC2012_val_{number:08d}.JPEG")
    ids = [order.index(image.parent.name) + 1 for image in shown]
    (devkit / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{i}\n" for i in ids))
    return tmp_path / "data", [image.parent.name for image in shown]


def _test_split(name, data_dir, split="test"):
    return load_dataset(parse_target(name), split, data_dir=data_dir, index_dir=data_dir / "kept")


@pytest.mark.filterwarnings(
    "ignore:Python 3.14 will:DeprecationWarning"
)  # torchvision unpacks, Python 3.12 warns
def test_imagenets_flat_validation_pictures_have_the_labels_of_the_devkit(ilsvrc, tmp_path, monkeypatch):
    data_dir, wnids = ilsvrc
    dataset = _test_split("imagenet", data_dir)
    assert [dataset.classes[label] for label in dataset.labels] == wnids
    archive = tmp_path / "devkit" / "ILSVRC2012_devkit_t12.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as out:
        out.add(data_dir / "imagenet" / "ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12")
    monkeypatch.setattr(imagenet, "check_integrity", lambda *_: True)
    monkeypatch.setattr(imagenet, "_verify_archive", lambda *_: None)
    imagenet.parse_devkit_archive(archive.parent)
    _, theirs = torch.load(archive.parent / "meta.bin", weights_only=True)
    assert theirs == wnids
    in_folders = _test_split("imagenet", DATA)
    assert dataset.classes == in_folders.classes
    assert [c.tobytes() for c in dataset.contents] == [
        in_folders.contents[i].tobytes() for i in dataset.labels
    ]
    assert prepared(data_dir, data_dir / "kept", "test") == ["imagenet"]


def test_a_devkit_that_contradicts_its_pictures_is_named(ilsvrc):
    data_dir, _ = ilsvrc
    devkit = data_dir / "imagenet" / "ILSVRC2012_devkit_t12" / "data"
    truth = devkit / "ILSVRC2012_validation_ground_truth.txt"
    lines = truth.read_text().splitlines()
    truth.write_text("\n".join([*lines, "17"]))
    with pytest.raises(TargetError, match=r"1 of 13 pictures cannot be used: val/ILSVRC2012_val_00000013"):
        _test_split("imagenet", data_dir)
    truth.write_text("\n".join([*lines[:4], "1001", *lines[5:]]))
    with pytest.raises(TargetError, match=r"line 5 is '1001', expected an ILSVRC2012_ID of 1 to 1000"):
        _test_split("imagenet", data_dir)
    truth.write_text("\n".join(lines))
    for name in ("n00000001", "n00000002"):
        (data_dir / "imagenet" / "train" / name).mkdir(parents=True)
    with pytest.raises(TargetError, match=r"train: 2 class folders, expected 1000"):
        _test_split("imagenet", data_dir)
    shutil.rmtree(data_dir / "imagenet" / "train")
    whole = (devkit / "meta.mat").read_bytes()
    (devkit / "meta.mat").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TargetError, match=r"meta.mat: cannot be read \(.*restore the official file"):
        _test_split("imagenet", data_dir)


def test_the_train_split_of_a_flat_imagenet_is_still_class_folders(ilsvrc):
    with pytest.raises(TargetError, match=r"no folder train .*; put the official pictures into .*devkit"):
        _test_split("imagenet", ilsvrc[0], "train")


@pytest.fixture
def paths(tmp_path):
    """data_dir: Places365's lists of 365 categories, of which a few have a real picture."""
    root = tmp_path / "data" / "places365"
    names = [f"{'abc'[i // 122]}/{'abc'[i // 122]}room_{i:03d}" for i in range(365)]
    names[15], names[16] = "a/aroom_014/indoor", "a/aroom_014/outdoor"
    root.mkdir(parents=True)
    (root / "categories_places365.txt").write_text("".join(f"/{name} {i}\n" for i, name in enumerate(names)))
    train, val = [], []
    for at, image in enumerate(_images(9)):
        label = (15, 300, 16, 2)[at % 4]
        if at < 6:
            path = root / "data_256_standard" / names[label] / f"{at:08d}.jpg"
            train.append(f"/{names[label]}/{path.name} {label}\n")
        else:
            path = root / "val_256" / f"Places365_val_{at:08d}.jpg"
            val.append(f"{path.name} {label}\n")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, path)
    (root / "places365_train_standard.txt").write_text("".join(train))
    (root / "places365_val.txt").write_text("".join(val))
    return tmp_path / "data"


@pytest.mark.parametrize(("split", "theirs"), [("train", "train-standard"), ("test", "val")])
def test_places365_lists_are_read_as_torchvision_reads_them(paths, split, theirs, monkeypatch):
    dataset = _test_split("places365", paths, split)
    monkeypatch.setattr(Places365, "_check_integrity", lambda *_: True)
    reference = Places365(paths / "places365", theirs, small=True)
    assert [dataset.name_of(row) for row in range(len(dataset))] == [str(path) for path, _ in reference.imgs]
    assert dataset.labels.tolist() == reference.targets
    for row, (image, _) in enumerate(reference):
        np.testing.assert_array_equal(dataset.pixels_of(row), np.asarray(image))
    assert [dataset.classes[i] for i in (2, 15, 16)] == ["aroom_002", "aroom_014-indoor", "aroom_014-outdoor"]
    assert list(dataset.classes) == sorted(dataset.classes)


def test_damaged_lists_of_places365_are_named(paths):
    root = paths / "places365"
    listed = root / "places365_train_standard.txt"
    good = listed.read_text()
    listed.write_text(good + "/a/aroom_002/nothing.jpg 365\n")
    with pytest.raises(TargetError, match=r"line 7 is '.*365', expected a path and a label of 0 to 364"):
        _test_split("places365", paths, "train")
    listed.write_text(good + good.splitlines()[0])
    with pytest.raises(TargetError, match=r"data_256_standard/.*00000000.jpg is listed twice"):
        _test_split("places365", paths, "train")
    listed.write_text("\n")
    with pytest.raises(TargetError, match=r"places365_train_standard.txt: names no picture"):
        _test_split("places365", paths, "train")
    listed.write_text(good)
    categories = root / "categories_places365.txt"
    categories.write_text("".join(categories.read_text().splitlines(keepends=True)[:364]))
    with pytest.raises(TargetError, match=r"364 categories, expected 365; restore"):
        _test_split("places365", paths, "train")
    categories.unlink()
    with pytest.raises(TargetError, match=r"categories_places365.txt: cannot be read"):
        _test_split("places365", paths, "train")
