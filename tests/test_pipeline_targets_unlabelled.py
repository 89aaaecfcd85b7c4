"""Folders of pictures without labels: what is read, that the labelled splits stay as they were, refusals."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import api
from pipeline.api import Paths
from pipeline.data.datasets import load_dataset, parse_target
from sskt.errors import TargetError

pytestmark = pytest.mark.usefixtures("narrow")


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def load(name: str, split: str, tmp_path: Path):
    return load_dataset(parse_target(name), split, data_dir=Path("none"), index_dir=tmp_path / "kept")


@pytest.fixture
def root(tmp_path):
    for split in ("train", "val"):
        for n, name in enumerate(("cat", "dog")):
            for i in range(2):
                draw(tmp_path / "pets" / split / name / f"{i}.png", seed=10 * n + i + 100 * (split == "val"))
    return tmp_path / "pets"


@pytest.mark.parametrize("folder", ["unlabelled", "Unlabeled_images"])
def test_pictures_without_labels_are_read_at_any_depth(root, tmp_path, folder):
    before = load(f"imagefolder:{root}", "train", tmp_path)
    for seed, name in enumerate(("z.png", "b/deep/er/1.png", "b/0.png")):
        draw(root / folder / name, 50 + seed)
    (root / folder / "notes.txt").write_text("no picture")
    pool = load(f"imagefolder:{root}", "unlabelled", tmp_path)
    names = ["b/0.png", "b/deep/er/1.png", "z.png"]  # sorted level by level, as class folders are
    assert [pool.name_of(row) for row in range(3)] == [str(root / folder / name) for name in names]
    assert pool.ids.tolist() == [0, 1, 2]
    assert pool.labels.tolist() == [-1, -1, -1]
    assert pool.classes == ()
    for row, name in enumerate(names):
        content = (root / folder / name).read_bytes()
        assert pool.contents[row].tobytes() == hashlib.sha256(content).digest()[:16]
    assert any("1 files ignored (1 .txt)" in note for note in pool.notes)
    train = load(f"imagefolder:{root}", "train", tmp_path)  # a store that was made before still serves
    assert train.content_sha256 == before.content_sha256
    assert train.classes_sha256 == before.classes_sha256
    rows = api.prepare(f"imagefolder:{root}", paths=Paths(tmp_path, tmp_path / "stores"))
    assert [(row["split"], row["samples"]) for row in rows] == [("train", 4), ("test", 4), ("unlabelled", 3)]


def test_any_folder_is_a_pool_and_no_target(root, tmp_path):
    pool = load(f"unlabelled:{root}", "unlabelled", tmp_path)
    assert (len(pool), set(pool.labels.tolist())) == (8, {-1})
    with pytest.raises(TargetError, match="has no labels, so it is no target"):
        load(f"unlabelled:{root}", "train", tmp_path)


def test_what_may_be_meant_otherwise_is_said_or_refused(root, tmp_path):
    (root / "unlabelled").mkdir()
    with pytest.raises(TargetError, match=r"unlabelled: no picture .* in this folder; fill or remove it"):
        load(f"imagefolder:{root}", "unlabelled", tmp_path)
    draw(root / "unlabelled" / "0.png", 1)
    draw(root / "unlabeled" / "0.png", 2)
    with pytest.raises(TargetError, match="both mean images without labels; merge them"):
        load(f"imagefolder:{root}", "train", tmp_path)
    (root / "unlabeled").rename(root / "val" / "unlabelled")
    with pytest.raises(TargetError, match="every image of this split needs a label; move it beside train/"):
        load(f"imagefolder:{root}", "test", tmp_path)
    (root / "val" / "unlabelled").rename(root / "train" / "unlabelled")
    with pytest.raises(TargetError, match="lies beside train/, and a class of that name in it; rename one"):
        load(f"imagefolder:{root}", "train", tmp_path)


def test_without_a_train_split_the_folder_is_a_class_and_that_is_said(root, tmp_path):
    draw(root / "train" / "unlabelled" / "0.png", 1)
    dataset = load(f"imagefolder:{root / 'train'}", "train", tmp_path)
    assert dataset.classes == ("cat", "dog", "unlabelled")
    assert any("unlabelled/ is taken for a class, since no train/" in note for note in dataset.notes)
