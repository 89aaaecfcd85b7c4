"""Lists, tar shards and tables of one's own: the same images give the same dataset, pixels, stores and
students as class folders do.
"""

import json
import os
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from listening import Remarks
from own_images import CLASSES, draw, files_of, make_all, make_folders, write_csv, write_shards, write_tar
from programs import save_program
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score
from torch import nn

from cache.store import find_stores
from pipeline import api
from pipeline.api import Augmentation, Paths, choose_execution
from pipeline.data.datasets import family_of, has_unlabelled, has_val, load_dataset, parse_target
from pipeline.data.datasets.own.pack_files import files_at, split_of_each
from pipeline.data.plan import RandomResizedCropFlip
from pipeline.data.render import open_renderer
from sskt.errors import TargetError
from sskt.students import WrappedBackbone

pytestmark = pytest.mark.usefixtures("narrow")

FORMS = ("list", "tar", "arrow", "parquet")
SHOWN = Augmentation(side_px=24)
EXECUTION = choose_execution(device="cpu", renderer="torch", threads=2)


def load(name: str, split: str, tmp_path: Path):
    return load_dataset(parse_target(name), split, data_dir=Path("none"), index_dir=tmp_path / "kept")


def backbone() -> WrappedBackbone:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU()
    return WrappedBackbone(nn.Sequential(*layers), side_px=24)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    return folder, make_all(folder)


@pytest.mark.parametrize("form", FORMS)
def test_the_same_images_are_the_same_dataset(made, form):
    folder, targets = made
    for split in ("train", "test"):
        expected, found = (load(targets[of], split, folder) for of in ("folders", form))
        assert found.content_sha256 == expected.content_sha256
        assert found.classes_sha256 == expected.classes_sha256
        assert found.classes == CLASSES
        assert found.kind == "files"
        files = files_of(folder / "pets", "train" if split == "train" else "val")
        for row, file in enumerate(files):
            assert (
                found.encoded(row) == file.read_bytes()
            )  # noise of odd sizes is RGB, as all decoders read it
        assert found.take(np.array([2, 0])).encoded(0) == files[2].read_bytes()


@pytest.mark.parametrize("renderer", ["torch", "dali"])
def test_renderers_draw_the_same_pixels(made, renderer):
    folder, targets = made
    if renderer == "dali":
        pytest.importorskip("nvidia.dali")
    execution = choose_execution(device="cpu", renderer=renderer, threads=2)
    plan = RandomResizedCropFlip(seed=3, side_px=16)
    drawn = []
    for form in ("folders", *FORMS):
        dataset = load(targets[form], "train", folder)
        batches = [np.array([5, 0, 11]), np.array([1])]
        with closing(open_renderer(dataset, plan, execution, batch_size=4)) as opened:
            drawn.append(torch.cat(list(opened.render(2, batches))))
    for pixels in drawn[1:]:
        assert torch.equal(pixels, drawn[0])


def test_a_store_filled_from_folders_teaches_a_student_of_the_list_the_same(made, tmp_path):
    folder, targets = made
    paths = Paths(tmp_path, tmp_path / "stores")
    source = f"program:{save_program(tmp_path / 'tiny.pt2')}"
    api.precompute(
        [targets["folders"]],
        [source],
        views=2,
        augmentation=SHOWN,
        paths=paths,
        execution=EXECUTION,
        limit=None,
    )
    stores = list(find_stores(paths.cache_dir))
    weights = {}
    for form in ("folders", "list", "tar"):
        said = Remarks()
        api.train(
            targets[form],
            out=tmp_path / form,
            model=backbone(),
            augmentation=SHOWN,
            paths=paths,
            execution=EXECUTION,
            sources=(source,),
            epochs=1,
            batch_size=6,
            amp="fp32",
            labels="cached",
        )
        assert any("the same images under another name" in each for each in said) == (form != "folders")
        weights[form] = load_file(tmp_path / form / "student.safetensors")
        config = json.loads((tmp_path / form / "config.json").read_text())
        assert config["contents"]["test"] == load(targets["folders"], "test", folder).content_sha256
    for form in ("list", "tar"):
        assert all(torch.equal(weights[form][name], weights["folders"][name]) for name in weights["folders"])
    assert list(find_stores(paths.cache_dir)) == stores  # none was made beside
    on_list, on_folders = (
        api.evaluate(tmp_path / form, execution=EXECUTION, backbone=backbone())
        for form in ("list", "folders")
    )
    assert on_list["test_loss"] == on_folders["test_loss"]
    # moved: the run finds its data by their contents
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder / "shards", moved)
    again = api.evaluate(tmp_path / "tar", target=f"tar:{moved}", execution=EXECUTION, backbone=backbone())
    assert again["test_loss"] == on_folders["test_loss"]
    files = files_of(folder / "pets", "val")
    found = api.predict(tmp_path / "tar", files, execution=EXECUTION, backbone=backbone())
    right = found.top == [CLASSES.index(file.parent.name) for file in files]
    assert 100 * right.mean() == pytest.approx(on_folders["test_top1"])


def test_what_names_no_test_split_is_divided_as_class_folders_are(tmp_path):
    root = make_folders(tmp_path / "pets") / "train"
    for name in CLASSES:
        for i in range(7):
            draw(root / name / f"more{i}.jpg", 1000 + i + 50 * CLASSES.index(name))
    files = [path for name in CLASSES for path in sorted((root / name).iterdir())]
    rows = [{"path": str(file.relative_to(root)), "label": file.parent.name} for file in files[::-1]]
    write_csv(root, root / "pets.csv", rows)
    write_csv(root, root / "train.csv", [row | {"split": "Training"} for row in rows])
    members = {}
    for file in files:
        key = str(file.relative_to(root))
        members |= {key: file.read_bytes(), str(Path(key).with_suffix(".cls")): file.parent.name.encode()}
    write_tar(tmp_path / "all.tar", members)
    for split in ("train", "test"):
        expected = load(f"imagefolder:{root}", split, tmp_path)
        for name in (f"list:{root}/pets.csv", f"list:{root}/train.csv", f"tar:{tmp_path}/all.tar"):
            found = load(name, split, tmp_path)
            assert found.content_sha256 == expected.content_sha256
            assert found.classes_sha256 == expected.classes_sha256
    assert any("fixed fifth of each class is held out (6 images)" in note for note in found.notes)
    assert not has_val(parse_target(f"list:{root}/train.csv"), Path())


def test_splits_labels_and_paths_of_a_list(tmp_path):
    for seed in range(8):
        draw(tmp_path / "in" / f"{seed}.jpg", seed)
    draw(tmp_path / "far" / "8.jpg", 8)
    draw(tmp_path / "far" / "9.jpg", 9)
    file = tmp_path / "in" / "list.csv"
    lines = [
        "path,label,split,width",
        '"0.jpg", 10 ,train,30',
        "./1.jpg,9,train,",
        "a/../2.jpg,10,val,",
        "3.jpg,9,TEST,",
    ]
    lines += [
        "4.jpg,,unlabelled,",
        f"{tmp_path}/in/5.jpg,9,train,",
        f"{tmp_path}/far/8.jpg,10,dev,",
        "6.jpg,zebra,unlabelled,",
    ]
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n")
    name = f"list:{file}"
    assert has_val(parse_target(name), Path())
    assert has_unlabelled(parse_target(name), Path())
    splits = {split: load(name, split, tmp_path) for split in ("train", "val", "test", "unlabelled")}
    assert splits["train"].classes == ("9", "10")  # whole numbers in their order
    names = {s: [Path(d.name_of(r)).name for r in range(len(d))] for s, d in splits.items()}
    assert names == {
        "train": ["0.jpg", "1.jpg", "5.jpg"],
        "val": ["8.jpg", "2.jpg"],  # an absolute path comes before relative ones
        "test": ["3.jpg"],
        "unlabelled": ["4.jpg", "6.jpg"],
    }
    assert splits["train"].labels.tolist() == [1, 0, 0]
    assert splits["unlabelled"].labels.tolist() == [-1, -1]
    assert splits["unlabelled"].classes == ()
    assert any("not read: width" in note for note in splits["train"].notes)
    with_json = tmp_path / "in" / "list.json"
    with_json.write_text(
        json.dumps(
            [{"path": "0.jpg", "label": 10}, {"path": "1.jpg", "label": 9}] * 1
            + [{"path": f"{i}.jpg", "label": 9 + i % 2} for i in range(2, 8)]
        )
    )
    with_lines = with_json.with_suffix(".jsonl")
    with_lines.write_text("".join(json.dumps(each) + "\n" for each in json.loads(with_json.read_text())))
    one, other = (load(f"list:{path}", "train", tmp_path) for path in (with_json, with_lines))
    assert one.content_sha256 == other.content_sha256
    assert one.classes == ("9", "10")


@pytest.mark.parametrize("written", ["|", "json", "; ", "arrow", "tar"])
def test_several_labels_give_sklearns_average_precision(tmp_path, written):
    said = [("red, dark",), ("blue", "red, dark"), (), ("blue",), ("blue", "red, dark"), ("red, dark",)]
    rows, members = [], {}
    for row, labels in enumerate(said * 2):
        draw(tmp_path / "x" / f"{row:02}.jpg", row)
        split = "train" if row < 6 else "test"
        joined = json.dumps(labels) if written == "json" else written.join(labels)
        rows.append({"path": f"x/{row:02}.jpg", "labels": joined, "split": split})
        members[f"{row:02}.jpg"] = (tmp_path / "x" / f"{row:02}.jpg").read_bytes()
        members[f"{row:02}.json"] = json.dumps({"labels": labels}).encode()
    name = f"list:{write_csv(tmp_path, tmp_path / 'several.csv', rows)}"
    if written == "tar":
        items = list(members.items())
        write_tar(tmp_path / "shards" / "train.tar", dict(items[:12]))
        write_tar(tmp_path / "shards" / "test.tar", dict(items[12:]))
        name = f"tar:{tmp_path}/shards"
    if written == "arrow":
        (tmp_path / "tables").mkdir()
        for split in ("train", "test"):
            some = [row for row in rows if row["split"] == split]
            images = [(tmp_path / row["path"]).read_bytes() for row in some]
            labels = [list(said[rows.index(row) % 6]) for row in some]
            pq.write_table(
                pa.table({"image": images, "labels": labels}), tmp_path / "tables" / f"{split}.parquet"
            )
        name = f"hf-dataset:{tmp_path}/tables"
    train, test = (load(name, split, tmp_path) for split in ("train", "test"))
    expected = np.array([["blue" in labels, "red, dark" in labels] for labels in said])
    assert train.classes == ("blue", "red, dark")
    assert (train.multi_hot == expected).all()
    assert (test.multi_hot == expected).all()
    paths = Paths(tmp_path, tmp_path / "stores")
    summary = api.train(
        name, out=tmp_path / "run", model=backbone(), augmentation=SHOWN, paths=paths, execution=EXECUTION,
        method="scratch", epochs=1, batch_size=3, amp="fp32",
    )  # fmt: skip
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["primary_loss"] == "bce"
    figures = api.evaluate(tmp_path / "run", execution=EXECUTION, backbone=backbone())
    files = [tmp_path / "x" / f"{row:02}.jpg" for row in range(6, 12)]
    scores = api.predict(tmp_path / "run", files, execution=EXECUTION, backbone=backbone()).probabilities
    precisions = [average_precision_score(expected[:, c], scores[:, c]) for c in range(2)]
    assert figures["test_map_plain"] == pytest.approx(100 * np.mean(precisions))
    assert "test_map" in summary


def test_a_list_is_a_pool_of_images_without_labels(made, tmp_path):
    folder, _ = made
    for seed in range(3):
        draw(tmp_path / f"{seed}.jpg", 500 + seed)
    rows = [{"path": f"{seed}.jpg", "label": str(seed), "split": "train"} for seed in range(3)]
    draw(tmp_path / "3.jpg", 503)
    rows.append({"path": "3.jpg", "label": "0", "split": "test"})
    pool = f"list:{write_csv(tmp_path, tmp_path / 'pool.csv', rows)}"
    source = f"program:{save_program(tmp_path / 'tiny.pt2')}"
    summary = api.train(
        f"list:{folder / 'pets.csv'}", out=tmp_path / "run", model=backbone(), augmentation=SHOWN,
        paths=Paths(tmp_path, tmp_path / "stores"), execution=EXECUTION, sources=(source,),
        unlabelled=(pool,), labels="live", epochs=1, batch_size=4, amp="fp32",
    )  # fmt: skip
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["contents"]["unlabelled-1"] == load(pool, "train", tmp_path).content_sha256
    assert summary["epochs"] == 1


def test_images_without_labels_are_a_pool_in_every_form(tmp_path):
    for seed in range(4):
        draw(tmp_path / f"{seed}.jpg", seed)
    contents = {f"{seed}.jpg": (tmp_path / f"{seed}.jpg").read_bytes() for seed in range(4)}
    rows = [{"path": name, "split": "unlabelled"} for name in contents]
    several = {f"{seed}.json": json.dumps({"labels": ["a", "b"][seed % 2 :]}).encode() for seed in range(4)}
    write_tar(tmp_path / "shards" / "train-0.tar", contents | several)
    write_tar(tmp_path / "shards" / "test-0.tar", contents | several)
    write_tar(tmp_path / "shards" / "unlabelled-0.tar", contents)
    write_tar(tmp_path / "unlabelled-1.tar", contents)
    (tmp_path / "tables").mkdir()
    images = pa.table({"image": list(contents.values()), "label": [None] * 4})
    pq.write_table(images, tmp_path / "tables" / "unlabelled.parquet")
    for name in (
        f"list:{write_csv(tmp_path, tmp_path / 'pool.csv', rows)}",
        f"tar:{tmp_path}/shards",
        f"tar:{tmp_path}/unlabelled-*.tar",
        f"hf-dataset:{tmp_path}/tables",
    ):
        pool = load(name, "unlabelled", tmp_path)
        assert pool.labels.tolist() == [-1] * 4
        assert (pool.classes, pool.multi_hot) == ((), None)
        assert [pool.encoded(row) for row in range(4)] == list(contents.values())
        spec = parse_target(name)
        own = "train" if name.endswith("shards") else "unlabelled"
        assert family_of(spec).pool_split(spec, Path()) == own
    assert load(f"tar:{tmp_path}/shards", "train", tmp_path).multi_hot.tolist() == [[1, 1], [0, 1]] * 2


def test_shards_are_read_once_and_again_when_they_change(tmp_path, monkeypatch):
    from pipeline.data.datasets.own import tar_index

    root = make_folders(tmp_path / "pets")
    shards = write_shards(root, tmp_path / "packs")
    read = []
    as_it_is = tar_index.read_shard
    monkeypatch.setattr(tar_index, "read_shard", lambda file: (read.append(file.name), as_it_is(file))[1])
    before = load(f"tar:{shards}", "train", tmp_path)
    assert sorted(read) == ["train-000000.tar", "train-000001.tar", "validation-000000.tar"]
    read.clear()
    assert load(f"tar:{shards}", "train", tmp_path).content_sha256 == before.content_sha256
    assert read == []
    os.utime(shards / "train-000001.tar", ns=(1, 1))
    assert load(f"tar:{shards}", "train", tmp_path).content_sha256 == before.content_sha256
    assert read == ["train-000001.tar"]
    (index,) = (tmp_path / "kept").glob("tar-packs-shards-*.npz")
    index.write_bytes(index.read_bytes()[:100])
    again = load(f"tar:{shards}", "train", tmp_path)
    assert again.content_sha256 == before.content_sha256
    assert any("damaged" in note for note in again.notes)


def test_patterns_name_shards_as_webdataset_writes_them(tmp_path):
    for name in ("train-000.tar", "train-001.tar", "train-002.tar", "val.tar", ".hidden.tar"):
        write_tar(tmp_path / "a" / name, {})
    found = {
        pattern: [file.name for file in files_at(tmp_path / pattern, (".tar",))]
        for pattern in (
            "a",
            "a/train-{000..001}.tar",
            "a/{train-000,val}.tar",
            "a/train-*.tar",
            "a/val.tar",
            "b",
        )
    }
    assert found == {
        "a": ["train-000.tar", "train-001.tar", "train-002.tar", "val.tar"],
        "a/train-{000..001}.tar": ["train-000.tar", "train-001.tar"],
        "a/{train-000,val}.tar": ["train-000.tar", "val.tar"],
        "a/train-*.tar": ["train-000.tar", "train-001.tar", "train-002.tar"],
        "a/val.tar": ["val.tar"],
        "b": [],
    }
    with pytest.raises(TargetError, match=r"1 of its 4 files are missing, the first is train-003.tar"):
        files_at(tmp_path / "a/train-{000..003}.tar", (".tar",))


def test_names_of_files_say_the_split():
    root = Path("/data/x")
    for names, expected in (
        (("train-00000-of-00002.parquet", "test-00000-of-00001.parquet"), ["train", "test"]),
        (("imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar"), ["train", "test"]),
        (("train/data-0.arrow", "validation/data-0.arrow", "test/data-0.arrow"), ["train", "val", "test"]),
        (("0000.tar", "0001.tar"), None),
        (("train1.tar", "unlabelled.tar"), ["train", "unlabelled"]),
    ):
        assert split_of_each([root / name for name in names], root) == expected
    with pytest.raises(TargetError, match=r"1 of 2 files name no split, the first is extra\.tar"):
        split_of_each([root / "train.tar", root / "extra.tar"], root)


def test_what_the_datasets_library_saves_is_read(made, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    datasets = pytest.importorskip("datasets")
    folder, targets = made
    files = files_of(folder / "pets", "train")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    )
    rows = {"image": list(map(str, files)), "label": [file.parent.name for file in files]}
    datasets.disable_progress_bars()
    datasets.DatasetDict(
        {split: datasets.Dataset.from_dict(rows, features=features) for split in ("train", "test")}
    ).save_to_disk(tmp_path / "saved")
    found, expected = (
        load(f"hf-dataset:{tmp_path}/saved", "train", tmp_path),
        load(targets["list"], "train", folder),
    )
    assert found.content_sha256 == expected.content_sha256
    assert found.classes_sha256 == expected.classes_sha256
