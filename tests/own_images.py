"""The same few images as class folders, lists, tar shards and tables, written by other code than ours."""

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = ("big cat", "cat, small", "dog")  # spaces and commas are part of names
N_TRAIN, N_VAL = 4, 2  # of each class


def draw(path: Path, seed: int) -> None:
    """An image of noise, a JPEG or PNG of some size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (26 + seed % 5, 30, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def make_folders(root: Path) -> Path:
    """ROOT/train/CLASS/ and ROOT/val/CLASS/, each image with other pixels."""
    for split, n in (("train", N_TRAIN), ("val", N_VAL)):
        for label, name in enumerate(CLASSES):
            for i in range(n):
                seed = 100 * (split == "val") + 10 * label + i
                draw(root / split / name / f"{i}.{'png' if i == 1 else 'jpg'}", seed)
    return root


def files_of(root: Path, split: str) -> list[Path]:
    """The images of a split, in the order in which class folders have them."""
    return [path for name in CLASSES for path in sorted((root / split / name).iterdir())]


def write_csv(root: Path, file: Path, rows: list[dict] | None = None) -> Path:
    """A list of the images with path, label and split; of `rows`, if they are given."""
    if rows is None:
        rows = [
            {"path": str(path.relative_to(file.parent)), "label": path.parent.name, "split": split}
            for split in ("train", "val")
            for path in reversed(files_of(root, split))  # in any order
        ]
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


def write_tar(file: Path, members: dict[str, bytes]) -> Path:
    """A tar file of these members, in this order."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, content in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    return file


def write_shards(root: Path, folder: Path) -> Path:
    """Two shards of the train split and one of val; labels as .cls, and in the second shard as .json."""
    train, val = files_of(root, "train"), files_of(root, "val")
    for name, files in (("train-000000", train[:5]), ("train-000001", train[5:]), ("validation-000000", val)):
        members = {}
        for path in files:
            key = f"{path.parent.name}/{path.stem}"
            if name == "train-000001":
                members[f"{key}.json"] = json.dumps({"label": path.parent.name, "width": 30}).encode()
            else:
                members[f"{key}.cls"] = path.parent.name.encode()
            members[key + path.suffix] = path.read_bytes()
        write_tar(folder / f"{name}.tar", members)
    return folder


def table(root: Path, split: str, *, classes: tuple[str, ...] = CLASSES) -> pa.Table:
    """A split as `datasets` writes it: images as bytes and path, labels as numbers of declared classes."""
    files = files_of(root, split)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    label = {"names": list(classes), "_type": "ClassLabel"}
    features = {"image": {"_type": "Image"}, "label": label}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema([("image", image), ("label", pa.int64())], metadata)
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
    return pa.table([images, [CLASSES.index(path.parent.name) for path in files]], schema)


def write_parquet(root: Path, folder: Path) -> Path:
    """One Parquet file of each split."""
    (folder / "data").mkdir(parents=True)
    for split, name in (("train", "train"), ("val", "validation")):
        pq.write_table(
            table(root, split), folder / "data" / f"{name}-00000-of-00001.parquet", row_group_size=5
        )
    return folder


def save_arrow(root: Path, folder: Path) -> Path:
    """What save_to_disk of a DatasetDict leaves: each split in two files."""
    for split, name in (("train", "train"), ("val", "validation")):
        (folder / name).mkdir(parents=True)
        whole = table(root, split)
        parts = whole.slice(0, 3), whole.slice(3)
        files = [f"data-0000{number}-of-00002.arrow" for number in range(2)]
        for file, part in zip(files, parts, strict=True):
            # sliced buffers are cut by taking: a file holds its own rows only
            with pa.ipc.new_stream(folder / name / file, part.schema) as out:
                out.write_table(part.take(list(range(len(part)))), max_chunksize=2)
        state = {"_data_files": [{"filename": file} for file in files]}
        (folder / name / "state.json").write_text(json.dumps(state))
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))
    return folder


def make_all(folder: Path) -> dict[str, str]:
    """Targets of the same images: form -> name."""
    root = make_folders(folder / "pets")
    return {
        "folders": f"imagefolder:{root}",
        "list": f"list:{write_csv(root, folder / 'pets.csv')}",
        "tar": f"tar:{write_shards(root, folder / 'shards')}",
        "arrow": f"hf-dataset:{save_arrow(root, folder / 'saved')}",
        "parquet": f"hf-dataset:{write_parquet(root, folder / 'parquet')}",
    }
