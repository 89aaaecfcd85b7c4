"""Lists, shards and tables that are wrong end in one line that names the place and says what to do; what is
only unusual is read.
"""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from own_images import CLASSES, files_of, make_folders, save_arrow, table, write_csv, write_shards, write_tar

from cli import main
from pipeline.data.datasets import load_dataset, parse_target

pytestmark = pytest.mark.usefixtures("narrow")

IMAGE = "pets/train/dog/2.jpg"
SOUND = "path,label,split\n" + "".join(  # lines 2 to 13
    f'"pets/{split}/{name}/{i}.{"png" if i == 1 else "jpg"}","{name}",{split}\n'
    for split in ("train", "val")
    for name in CLASSES
    for i in range(2)
)


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    return make_folders(tmp_path_factory.mktemp("bad") / "pets")


@pytest.fixture
def folder(pets, tmp_path):
    shutil.copytree(pets, tmp_path / "pets")
    return tmp_path


def prepare(name: str, folder: Path, *words: str):
    where = ("--data-dir", str(folder / "data"), "--cache-dir", str(folder / "stores"))
    return CliRunner().invoke(main, ["prepare", "--target", name, *where, *words])


def refused(name: str, folder: Path, expected: str) -> None:
    """`prepare` ends in one line with the words `expected`, in this order, and the data stay as they are."""
    before = {
        path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "stores" not in path.parts
    }
    result = prepare(name, folder)
    assert result.exit_code == 1, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, result.output
    at = 0
    for word in expected.split(" ... "):
        assert word in lines[0][at:], lines[0]
        at = lines[0].index(word, at) + len(word)
    for path, content in before.items():
        assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("file,label\na.jpg,cat\n", "columns 'file', 'label', expected path, label (or labels)"),
        ("path;label;split\n", "names no image"),
        ("path;label;split\na;b;c\n", "columns 'path;label;split' ... expected path"),
        ("path,label,label\na.jpg,b,c\n", "column 'label' twice"),
        ("path,label,labels\na.jpg,b,c\n", "both label and labels"),
        ("", "names no image"),
        (SOUND + "gone.jpg,dog,train\n", "1 of 13 pictures cannot be used: gone.jpg ... --allow-miss"),
        (SOUND + "pets/train/dog/1.png,dog,test\n", "line 14 names pets/train/dog/1.png, as line 7"),
        (SOUND + "pets/../pets/train/dog/1.png,dog,test\n", "line 14 names pets/train/dog/1.png, as"),
        (SOUND + "../x.jpg,dog,train\n", "line 14 ... ../x.jpg, which leaves the list's folder"),
        (SOUND + "s3://b/x.jpg,dog,train\n", "line 14 has the URL s3://b/x.jpg ... download"),
        (SOUND + IMAGE + ",,train\n", "1 of 13 images have no label ... line 14 ... unlabelled"),
        (SOUND + IMAGE + ",zebra,val\n", ("1 of 13 images have a label that no training image "
         "has ... line 14, with 'zebra'; expected one of big cat, cat, small, dog")),
        (SOUND + IMAGE + ",dog,holdout\n", "a split that is unknown ... line 14, with 'holdout'"),
        (SOUND.replace(",train", ",val"), "no image is of the split train, found 12 test"),
        (SOUND.replace(",val", ",unlabelled"), "no image is of the split val or test, found 6 train"),
        (SOUND + IMAGE + ",dog\n", "line 14 has 2 values, expected 3 as the header"),
        (SOUND + IMAGE + ",\"dog,train\n", "no sound CSV"),
        ("path,label\npets/train/dog/1.png,dog\n", "have one class (dog), expected at least two"),
        ("path,labels\na.jpg,a|b\nb.jpg,a;b\n", "hold '|' and ';'"),
        ("path,labels\na.jpg,\"[1, 2\"\n", "line 2 has the labels [1, 2, no sound JSON"),
    ],
)  # fmt: skip
def test_wrong_lists(folder, content, expected):
    (folder / "pets.csv").write_text(content)
    refused(f"list:{folder}/pets.csv", folder, expected)


def test_lists_of_other_kinds(folder):
    (folder / "latin.csv").write_bytes(SOUND.encode() + (IMAGE + ",Bär,train\n").encode("latin-1"))
    refused(f"list:{folder}/latin.csv", folder, "line 14 is not UTF-8 (byte 0xe4); save it as UTF-8")
    (folder / "pets.xlsx").write_bytes(b"PK")
    refused(f"list:{folder}/pets.xlsx", folder, "ends in '.xlsx', expected .csv")
    refused(f"list:{folder}/none.csv", folder, "none.csv: no such file")
    refused(f"list:{folder}/pets", folder, "pets: no such file")
    for content, expected in (
        ('{"path": "a"}', "holds no list"),
        ("[1]", "entry 1 is no object"),
        ("[{", "is no sound JSON"),
        ('[{"path": "a", "label": 0.5}]', "entry 1 has the label 0.5, expected text or a whole number"),
        ('[{"path": 5, "label": "a"}]', "entry 1 has the path 5"),
    ):
        (folder / "pets.json").write_text(content)
        refused(f"list:{folder}/pets.json", folder, expected)


def test_images_that_are_missing_or_damaged_are_counted_and_left_out_only_when_told(folder):
    (folder / "pets.csv").write_text(SOUND + "gone.jpg,dog,train\n")
    name = f"list:{folder}/pets.csv"
    assert prepare(name, folder).exit_code == 1
    result = prepare(name, folder, "--allow-missing")
    assert result.exit_code == 0, result.output
    train = load_dataset(
        parse_target(name), "train", data_dir=folder, index_dir=folder / "stores" / "indexes"
    )
    assert len(train) == 6
    assert any("1 of 13 pictures are left out" in note for note in train.notes)
    torn = folder / "pets" / "train" / "dog" / "0.jpg"
    torn.write_bytes(torn.read_bytes()[:200])
    refused(name, folder, "2 of 13 pictures cannot be used ... pets/train/dog/0.jpg")


def test_a_list_keeps_its_ids_when_an_image_is_left_out(folder):
    rows = [
        {"path": str(file.relative_to(folder)), "label": file.parent.name, "split": split}
        for split in ("train", "val")
        for file in files_of(folder / "pets", split)
    ]
    name = f"list:{write_csv(folder, folder / 'pets.csv', rows)}"
    (folder / "pets" / "train" / CLASSES[0] / "2.jpg").unlink()
    assert prepare(name, folder, "--allow-missing").exit_code == 0
    train = load_dataset(
        parse_target(name), "train", data_dir=folder, index_dir=folder / "stores" / "indexes"
    )
    assert train.ids.tolist() == [i for i in range(12) if i != 2]


@pytest.mark.parametrize("at", [700, 512 * 3, 2000, "mark", "byte"])
def test_torn_shards(folder, at):
    shards = write_shards(folder / "pets", folder / "shards")
    torn = shards / "train-000001.tar"
    content = bytearray(torn.read_bytes())
    names = [i for i in range(0, len(content), 512) if content[i + 257 : i + 262] == b"ustar"]
    if at == "byte":  # a header in the middle
        content[names[4] + 3] ^= 0xFF
        torn.write_bytes(content)
        expected = f"train-000001.tar: holds bytes at {names[4]:,} that are neither a file"
    else:
        end = len(bytes(content).rstrip(b"\0")) if at == "mark" else at
        end += -end % 512 if at == "mark" else 0  # at the end of a member, where nothing else shows it
        torn.write_bytes(content[:end])
        expected = f"train-000001.tar: ... at byte {end:,}" if at == "mark" else "train-000001.tar: ... byte"
    refused(f"tar:{shards}", folder, expected + " ... copy or download it again")


def test_wrong_shards(folder):
    files = files_of(folder / "pets", "train")
    image = files[0].read_bytes()
    sound = {f"{i}{f.suffix}": f.read_bytes() for i, f in enumerate(files)}
    labels = {f"{i}.cls": f.parent.name.encode() for i, f in enumerate(files)}
    shard = folder / "shards" / "a.tar"
    name = f"tar:{folder}/shards"
    for members, expected in (
        (sound | labels | {"0.png": image}, "a.tar: the key 0 has two images, 0.jpg and 0.png (byte"),
        (sound | {k: v for k, v in labels.items() if k != "3.cls"}, "1 of 12 images have no label ... 3."),
        (sound | labels | {"0.cls": b"\xff\xfe"}, "the .cls of 0.jpg (byte ... cannot be read"),
        (sound | {"0.json": b'{"label": [1]}'} | {k: v for k, v in labels.items() if k != "0.cls"},
         "the .json of 0.jpg ... has the labels [[1]]"),
        (sound | labels | {"0.json": b'{"labels": ["a"]}', "0.cls": b""}, "1 of 12 images have no label"),
        ({"a.txt": b"x"}, "hold no image"),
        (sound | labels | {"0.jpg": image[:150]}, "1 of 12 pictures cannot be used: a.tar/0.jpg"),
    ):  # fmt: skip
        write_tar(shard, members)
        refused(name, folder, expected)
    write_tar(shard, sound | labels)
    assert prepare(name, folder).exit_code == 0
    plain = shard.read_bytes()
    shard.with_name("a.tar.gz").write_bytes(gzip.compress(plain))
    shard.unlink()
    refused(name, folder, "a.tar.gz: is compressed (gzip) ... decompress it")
    shard.with_name("a.tar.gz").unlink()
    shard.write_bytes(plain + plain)
    refused(name, folder, "holds bytes at ... neither a file nor the archive's end")
    refused(f"tar:{folder}/none-*.tar", folder, "no such shard; name a tar file")
    shard.write_bytes(plain)
    shutil.copy(shard, shard.with_name("train-0.tar"))
    refused(name, folder, "1 of 2 files name no split, the first is a.tar")


def test_members_that_are_not_read_are_counted(folder):
    shards = write_shards(folder / "pets", folder / "shards")
    files = files_of(folder / "pets", "train")
    members = {f"{i}{f.suffix}": f.read_bytes() for i, f in enumerate(files)}
    members |= {f"{i}.cls": f.parent.name.encode() for i, f in enumerate(files)}
    write_tar(shards / "train-000000.tar", members | {"0.txt": b"x", "1.seg.png": b"x", "99.cls": b"dog"})
    result = prepare(f"tar:{shards}", folder)
    assert result.exit_code == 0, result.output
    assert "3 members are not read (1 .txt, 1 .seg.png, 1 labels without an image)" in result.output


def test_wrong_tables(folder):
    root, pets = folder / "tables", folder / "pets"
    root.mkdir()
    file, name = root / "train.parquet", f"hf-dataset:{folder}/tables"
    sound = table(pets, "train")
    images, labels = sound.column("image").combine_chunks(), sound.column("label")
    paths = pa.array([{"bytes": None, "path": "a.jpg"}, *images.to_pylist()[1:]], images.type)
    no_label = pa.array([-1, *labels.to_pylist()[1:]])
    beyond = pa.array([7, *labels.to_pylist()[1:]])
    for made, expected in (
        (sound.drop_columns(["image"]), "has the columns label, expected one column of images"),
        (sound.drop_columns(["label"]), "has the columns image, expected one column of labels"),
        (sound.set_column(0, "image", paths), "1 rows, the first is row 0, hold no image, or only the path"),
        (sound.set_column(1, "label", no_label), "1 of 12 images have no label ... train.parquet/row 0"),
        (sound.set_column(1, "label", beyond), "row 0 has the label 7, expected one of 3 classes"),
        (pa.table({"image": [1] * 3, "label": ["a", "b", "c"]}), "images are int64, expected the bytes"),
        (pa.table({"image": [b"x"] * 3, "label": [0.5, 1.5, 2.5]}), "row 0 has the label 0.5"),
        (sound.slice(0, 0), "1 files hold no image"),
    ):
        if made.schema.metadata is None and "image" in made.column_names and made.num_rows == 12:
            made = made.replace_schema_metadata(sound.schema.metadata)
        pq.write_table(made, file)
        refused(name, folder, expected)
    pq.write_table(sound, file)
    pq.write_table(table(pets, "val", classes=("a", "b", "c")), root / "test.parquet")
    refused(name, folder, "train.parquet: its columns are image and label ... write all files alike")
    (root / "test.parquet").unlink()
    file.write_bytes(file.read_bytes()[:-100])
    refused(name, folder, "train.parquet: cannot be read ... copy or download it again")
    refused(f"hf-dataset:{folder}/pets", folder, "no such folder of Arrow or Parquet files")


def test_wrong_saved_data_sets(folder, monkeypatch):
    root = save_arrow(folder / "pets", folder / "saved")
    name, part = f"hf-dataset:{root}", root / "train" / "data-00001-of-00002.arrow"
    content = part.read_bytes()
    part.write_bytes(content[: len(content) // 2])
    refused(name, folder, "train/data-00001-of-00002.arrow: cannot be read")
    part.unlink()
    refused(name, folder, "1 of its 4 files are missing, the first is train/data-00001-of-00002.arrow")
    with pa.ipc.new_stream(part, (made := table(folder / "pets", "train")).schema,
                           options=pa.ipc.IpcWriteOptions(compression="lz4")) as out:  # fmt: skip
        out.write_table(made)
    refused(name, folder, "data-00001-of-00002.arrow: is compressed")
    (root / "train" / "state.json").write_text("{}")
    refused(name, folder, "state.json: cannot be read ... copy the data set again")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (root / "dataset_dict.json").write_text(json.dumps({"splits": ["validation"]}))
    refused(name, folder, "needs pyarrow, which is not installed; run pip install 'sskt[parquet]'")


def test_labels_by_number_are_those_of_declared_classes(folder):
    made = table(folder / "pets", "train")
    numbers = np.array(made.column("label").to_pylist())
    root = folder / "numbers"
    root.mkdir()
    pq.write_table(made, root / "train.parquet")
    train = load_dataset(
        parse_target(f"hf-dataset:{root}"), "train", data_dir=folder, index_dir=folder / "kept"
    )
    assert train.labels.tolist() == numbers[train.ids].tolist()
