"""Pictures are validated once, damage is named, and a change to any file is noticed by the next load."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.datasets import load_dataset, parse_target, validation
from sskt.errors import TargetError

SPLIT = "train"


def _draw(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 20, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=90)


@pytest.fixture
def root(tmp_path):
    """Two classes of four JPEGs."""
    root = tmp_path / "pets"
    for name in ("cat", "dog"):
        for i in range(4):
            _draw(root / SPLIT / name / f"{i}.jpg", seed=i)
    return root


@pytest.fixture
def decoded(monkeypatch):
    """Sizes of the files that were decoded for validation, in any order."""
    sizes = []
    inspect = validation.inspect
    monkeypatch.setattr(validation, "inspect", lambda data: sizes.append(len(data)) or inspect(data))
    return sizes


def _load(root, index_dir=None):
    spec = parse_target(f"imagefolder:{root}")
    return load_dataset(spec, SPLIT, data_dir=Path("unused"), index_dir=index_dir or root.parent / "kept")


def _age(path, seconds=-100):
    """Set another modification time, as an edit at another moment has."""
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + seconds * 10**9))


def test_every_file_is_decoded_once_and_not_again(root, decoded):
    first = _load(root)
    assert len(decoded) == 8
    second = _load(root)
    assert len(decoded) == 8
    for name in ("ids", "labels", "sizes", "contents"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert first.content_sha256 == second.content_sha256
    assert not second.notes


def test_changed_picture_changes_its_content_and_only_its_own(root, decoded):
    before = _load(root)
    changed = root / SPLIT / "dog" / "2.jpg"
    _draw(changed, seed=99)
    _age(changed)
    decoded.clear()
    after = _load(root)
    assert len(decoded) == 1
    (row,) = np.flatnonzero((before.contents != after.contents).any(axis=1))
    assert after.name_of(row) == str(changed)
    assert before.content_sha256 != after.content_sha256
    np.testing.assert_array_equal(after.pixels_of(row), np.asarray(Image.open(changed)))


def test_change_that_keeps_length_is_noticed_by_its_time(root):
    before = _load(root)
    path = root / SPLIT / "cat" / "0.jpg"
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    _age(path)
    assert _load(root).content_sha256 != before.content_sha256


def test_removed_and_added_files_rebuild_the_listing(root, decoded):
    before = _load(root)
    (root / SPLIT / "cat" / "1.jpg").unlink()
    decoded.clear()
    fewer = _load(root)
    assert (len(fewer), decoded) == (7, [])
    assert fewer.ids.tolist() == list(range(7))
    np.testing.assert_array_equal(fewer.contents, np.delete(before.contents, 1, axis=0))
    _draw(root / SPLIT / "cat" / "1b.png", seed=5)
    more = _load(root)
    assert (len(more), len(decoded)) == (8, 1)
    assert Path(more.name_of(1)).name == "1b.png"


def _damage(root):
    """Five kinds of damage and the reason to be given for each."""
    folder = root / SPLIT / "cat"
    sound = (folder / "0.jpg").read_bytes()
    (folder / "0.jpg").write_bytes(sound[:-60])
    (folder / "1.jpg").write_bytes(b"")
    (folder / "2.jpg").write_text("a text file")
    (folder / "3.jpg").unlink()
    (folder / "3.jpg").symlink_to("nowhere")
    os.mkfifo(folder / "4.png")
    return {
        "0.jpg": "image file is truncated",
        "1.jpg": "zero bytes",
        "2.jpg": "no image inside",
        "3.jpg": "a link to nothing",
        "4.png": "not a file",
    }


def test_damaged_files_are_named_with_reasons_and_left_alone(root, decoded):
    reasons = _damage(root)
    before = sorted((p, p.lstat().st_size) for p in root.rglob("*"))
    with pytest.raises(TargetError) as caught:
        _load(root)
    message = str(caught.value)
    assert message.startswith(f"{root / SPLIT}: 5 of 9 pictures cannot be used: cat/0.jpg (")
    assert message.endswith("; replace or remove them, or go on without them by sskt prepare --allow-missing")
    for name, reason in reasons.items():
        (told,) = (part for part in message.split("cat/") if part.startswith(name))
        assert reason in told
    assert sorted((p, p.lstat().st_size) for p in root.rglob("*")) == before
    decoded.clear()
    for name in reasons:
        (root / SPLIT / "cat" / name).unlink()
    _draw(root / SPLIT / "cat" / "5.jpg", seed=77)
    assert (len(_load(root)), len(decoded)) == (5, 1)  # what was sound the first time is not decoded again


def test_many_damaged_files_are_counted(root):
    for i in range(12):
        (root / SPLIT / "dog" / f"bad{i:02d}.jpg").write_bytes(b"x")
    with pytest.raises(
        TargetError, match=r"12 of 20 pictures .*bad04.jpg \([^)]*\) and 7 more, all in .*; replace"
    ) as caught:
        _load(root)
    assert "bad05" not in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "flipped"])
def test_damaged_kept_index_is_built_again_and_said(root, decoded, damage):
    before = _load(root)
    (file,) = (root.parent / "kept").iterdir()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(
        {"truncated": data[: len(data) // 2], "text": b"x", "empty": b"", "flipped": data}[damage]
    )
    decoded.clear()
    again = _load(root)
    assert (again.content_sha256, len(decoded)) == (before.content_sha256, 8)
    assert "was damaged or of another version" in again.notes[0]
    assert not _load(root).notes


def test_no_flipped_byte_in_the_kept_index_gives_other_facts(root):
    before = _load(root)
    (file,) = (root.parent / "kept").iterdir()
    sound = file.read_bytes()
    random = np.random.default_rng(11)
    for place in random.integers(0, len(sound), 80):
        data = bytearray(sound)
        data[place] ^= 1 << random.integers(0, 8)
        file.write_bytes(data)
        after = _load(root)
        assert after.content_sha256 == before.content_sha256, place
        np.testing.assert_array_equal(after.sizes, before.sizes)


def test_index_that_cannot_be_kept_is_said_and_does_without(root, decoded):
    blocked = root.parent / "a file"
    blocked.write_text("in the way of a folder")
    for _ in range(2):
        decoded.clear()
        dataset = _load(root, blocked)
        assert (len(dataset), len(decoded)) == (8, 8)
        (note,) = dataset.notes
        assert note.startswith(f"{blocked}: the index cannot be kept there (")


def test_full_disk_leaves_no_half_index(root, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    dataset = _load(root)
    assert "No space left on device" in dataset.notes[0]
    assert list((root.parent / "kept").iterdir()) == []


def test_two_folders_of_one_name_keep_apart(root, tmp_path):
    other = tmp_path / "other" / "pets"
    for name in ("cat", "dog"):
        _draw(other / SPLIT / name / "0.jpg", seed=50)
    first, second = _load(root), _load(other, root.parent / "kept")
    assert (len(first), len(second)) == (8, 2)
    assert first.target == second.target == "imagefolder:pets"
    assert _load(root).content_sha256 == first.content_sha256
    assert len(list((root.parent / "kept").iterdir())) == 2


def test_moved_folder_is_the_same_target(root, tmp_path):
    before = _load(root)
    moved = tmp_path / "moved" / "pets"
    moved.parent.mkdir()
    root.rename(moved)
    after = _load(moved, tmp_path / "kept")
    assert (after.target, after.content_sha256) == (before.target, before.content_sha256)


def test_picture_lost_after_indexing_is_named(root):
    dataset = _load(root)
    (root / SPLIT / "cat" / "0.jpg").unlink()
    (root / SPLIT / "cat" / "1.jpg").write_bytes(b"no picture")
    for access in (dataset.pixels_of, dataset.encoded):
        with pytest.raises(TargetError, match=r"cat/0.jpg: cannot be read .*No such file"):
            access(0)
    with pytest.raises(TargetError, match=r"cat/1.jpg: is damaged since it was indexed"):
        dataset.pixels_of(1)


def test_progress_and_notes_leave_standard_output_alone(root, capfd):
    _load(root)
    assert capfd.readouterr().out == ""
