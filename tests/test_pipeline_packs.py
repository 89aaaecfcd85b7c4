"""Images in an object store: packed by prepare, read through a local folder of limited size."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image
from upath import UPath

from pipeline import api
from pipeline.api import Paths
from pipeline.data import load_dataset, pack, parse_target
from pipeline.data.datasets import remote_pack
from sskt.errors import TargetError

RNG = np.random.default_rng(3)


@pytest.fixture
def loose(tmp_path, monkeypatch):
    """Class folders whose order as text is not that of their numbers, in blocks of 4."""
    root = tmp_path / "pics"
    for split, n in (("train", 3), ("val", 1)):
        for name in ("10", "2", "9 lives"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                suffix = (".JPG", ".png", ".jpeg")[i]
                Image.fromarray(RNG.integers(0, 255, (30 + i, 40, 3), np.uint8)).save(folder / f"{i}{suffix}")
    monkeypatch.setattr(pack, "default_block_rows", lambda _: 4)
    return root


@pytest.fixture
def url():
    place = UPath("memory://packs/pics")
    yield place
    if place.exists():
        place.rmdir(recursive=True)


def opened(target, split, paths):
    return load_dataset(parse_target(target), split, data_dir=paths.data_dir, index_dir=paths.index_dir)


def test_packs_hold_what_the_loose_files_hold_and_any_tar_reader_reads_them(loose, url, tmp_path):
    here, there = (Paths(tmp_path / name / "data", tmp_path / name / "stores") for name in ("here", "there"))
    api.prepare(f"imagefolder:{loose}", paths=here, pack=str(url))
    assert sorted(p.name for p in url.iterdir()) == [
        "sskt-pack.json", "test-00000.tar", "train-00000.tar", "train-00001.tar", "train-00002.tar"
    ]  # fmt: skip
    for split in ("train", "test"):
        one, other = opened(f"imagefolder:{loose}", split, here), opened(f"tar:{url}", split, there)
        assert (one.content_sha256, one.classes) == (other.content_sha256, other.classes)
        assert one.classes == ("10", "2", "9 lives")
        assert one.truth_bytes == other.truth_bytes
        for row in range(len(one)):
            assert one.encoded(row) == other.encoded(row)
    with tarfile.open(fileobj=io.BytesIO((url / "train-00001.tar").read_bytes())) as tar:
        names = tar.getnames()
        about = json.loads(tar.extractfile("000000004.json").read())
    assert names == [
        f"00000000{i}{s}" for i in range(4, 8) for s in ((".jpg", ".png", ".jpeg")[i % 3], ".json")
    ]
    assert about == {"label": "2", "sskt_id": 4, "path": "2/1.png"}
    before = {path: path.stat().st_mtime for path in url.iterdir()}
    api.prepare(f"imagefolder:{loose}", paths=here, pack=str(url))
    assert {p: t for p, t in before.items() if p.suffix == ".tar"} == {
        p: p.stat().st_mtime for p in url.glob("*.tar")
    }
    some = opened(f"tar:{url}/train-{{00000..00001}}.tar", "train", there)
    assert set(some.ids.tolist()) < set(range(8))


def test_the_local_copies_keep_to_their_limit_and_a_changed_pack_is_fetched_again(
    loose, url, tmp_path, monkeypatch
):
    paths = Paths(tmp_path / "data", tmp_path / "stores")
    api.prepare(f"imagefolder:{loose}", paths=paths, pack=str(url))
    sizes = [path.stat().st_size for path in url.glob("*.tar")]
    monkeypatch.setenv(remote_pack.LIMIT, str(2 * max(sizes) / 1e9))
    data = opened(f"tar:{url}", "train", paths)
    assert any("would fetch them again and again: raise SSKT_PACKS_GB" in note for note in data.notes)
    folder = paths.data_dir / "packs"
    for copy in folder.glob("pack-*"):  # of threads that checked the images, whose fetches overlapped
        copy.unlink()
    for row in (0, 8, 4, 1):
        assert data.pixels_of(row).shape[2] == 3
        assert sum(copy.stat().st_size for copy in folder.glob("pack-*")) <= 2 * max(sizes)
    (url / "train-00000.tar").write_bytes(b"another")
    for copy in folder.glob("pack-*"):
        copy.unlink()
    with pytest.raises(TargetError, match=r"has 7 bytes, and .* when it was listed"):
        data.pixels_of(0)
    monkeypatch.setenv(remote_pack.LIMIT, "1e-9")
    with pytest.raises(TargetError, match=r"may hold 0\.00 GB of packs; raise SSKT_PACKS_GB"):
        data.pixels_of(8)


def test_what_cannot_be_packed_or_read_is_refused_in_one_sentence(loose, url, tmp_path):
    paths = Paths(tmp_path / "data", tmp_path / "stores")
    with pytest.raises(TargetError, match="pack images once, where they are on a disk, with `sskt prepare"):
        parse_target("imagefolder:s3://bucket/pics")
    with pytest.raises(TargetError, match="--pack: digits is not of image files"):
        api.prepare("digits", paths=paths, pack=str(url))
    with pytest.raises(TargetError, match="no such shard"):
        opened("tar:memory://packs/nothing", "train", paths)
    (url / "train-00009.tar").write_bytes(b"other")
    with pytest.raises(TargetError, match=r"holds train-00009\.tar, which is no pack of imagefolder:pics"):
        api.prepare(f"imagefolder:{loose}", paths=paths, pack=str(url))
    (url / "train-00009.tar").unlink()
    api.prepare(f"imagefolder:{loose}", paths=paths, pack=str(url))
    shard = bytearray((url / "train-00000.tar").read_bytes())
    at = shard.index(b'"label": "10"')
    shard[at : at + 13] = b'"label": "2" '
    (url / "train-00000.tar").write_bytes(shard)
    with pytest.raises(TargetError, match=r"train split does not read back as imagefolder:pics's"):
        api.prepare(f"imagefolder:{loose}", paths=paths, pack=str(url))


def test_samples_of_several_labels_and_of_none_are_packed(loose, url, tmp_path):
    paths = Paths(tmp_path / "data", tmp_path / "stores")
    listed = tmp_path / "list.json"
    files = sorted(path for path in loose.rglob("*.*"))
    rows = [
        {"path": str(path), "labels": ["b", "a"][: i % 3], "split": ("train", "test", "unlabelled")[i % 3]}
        for i, path in enumerate(files)
    ]
    rows[0]["labels"] = ["a", "b"]
    listed.write_text(json.dumps(rows))
    api.prepare(f"list:{listed}", paths=paths, pack=str(url))
    for split in ("train", "test", "unlabelled"):
        one, other = opened(f"list:{listed}", split, paths), opened(f"tar:{url}", split, paths)
        assert (one.content_sha256, one.truth_bytes) == (other.content_sha256, other.truth_bytes)
    assert (url / "unlabelled-00000.tar").exists()
