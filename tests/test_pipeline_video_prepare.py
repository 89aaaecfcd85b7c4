"""Videos are packed frame by frame as PyAV decodes them; what cannot be used is named, the rest goes on."""

import io
import json
import os
import random
import shlex
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import shared
from listening import Remarks
from PIL import Image
from videos import decoded, grey, make_empty, make_folder, make_sound, make_video

from cli import main
from pipeline import api
from pipeline.api import Paths, open_dataset
from pipeline.data.datasets.decode import to_pixels
from pipeline.data.datasets.video.dataset import first_frames, frames_dataset
from pipeline.data.datasets.video.pack import Packing
from sskt.errors import TargetError


def prepare(target, tmp_path, data_dir="unused", **more):
    said = Remarks()
    paths = Paths(data_dir=tmp_path / data_dir, cache_dir=tmp_path / "stores")
    api.prepare(target, paths=paths, **more)
    return paths, said


def packed_line(said):
    (line,) = [line for line in said if "listed videos are packed" in line]
    return line


def dataset_of(target, paths, split="train"):
    return open_dataset(target, split, paths=paths)


def test_packed_frames_are_pyavs_own_after_the_same_resize_and_quality(ucf101):
    dataset = dataset_of("ucf101", ucf101)
    frames, firsts = frames_dataset(dataset), first_frames(dataset)
    rng = np.random.default_rng(0)
    for row in range(len(dataset)):
        name = dataset.name_of(row).removesuffix(".frames").rpartition("/indexes/ucf101/")[2]
        truth = decoded(ucf101.data_dir / "ucf101" / "UCF-101" / name)
        assert dataset.sizes[row].tolist() == [len(truth), 128, 171]
        for number in (0, len(truth) - 1, *rng.integers(len(truth), size=8)):
            image = Image.fromarray(truth[number]).resize((171, 128), Image.Resampling.BILINEAR)
            expected = io.BytesIO()
            image.save(expected, format="JPEG", quality=90)
            at = int(firsts[row] + number)
            assert frames.encoded(at) == expected.getvalue(), f"{name} frame {number}"
            np.testing.assert_array_equal(frames.pixels_of(at), to_pixels(expected.getvalue()))
            # another frame of a moving scene would differ by more
            assert abs(float(frames.pixels_of(at).mean()) - float(truth[number].mean())) < 0.5


def test_frames_come_in_the_order_in_which_they_are_shown(tmp_path):
    make_video(tmp_path / "videos" / "a" / "1.mp4", codec="libx264", b_frames=3)
    make_video(tmp_path / "videos" / "b" / "1.avi", b_frames=2)
    make_video(tmp_path / "videos" / "b" / "2.mkv", times=[i * i + 1 for i in range(20)])  # variable rate
    paths, _ = prepare(f"videofolder:{tmp_path / 'videos'}", tmp_path)
    for split in ("train", "test"):
        dataset = dataset_of(f"videofolder:{tmp_path / 'videos'}", paths, split)
        frames = frames_dataset(dataset)
        for first in first_frames(dataset):
            levels = [frames.pixels_of(int(first) + i)[:, -8:].mean() for i in range(20)]
            np.testing.assert_allclose(levels, [grey(i) for i in range(20)], atol=3.5)


def test_every_real_hmdb51_clip_can_be_packed_broken_metadata_included(tmp_path):
    target = f"videofolder:{shared('data/hmdb51/hmdb51_org')}"
    paths, said = prepare(target, tmp_path)
    assert "4 of 4 listed videos are packed" in said[1]
    lengths = [dataset_of(target, paths, split).sizes[:, 0].tolist() for split in ("train", "test")]
    assert sorted(lengths[0] + lengths[1]) == [48, 72, 74, 83]


def test_missing_videos_are_counted_and_named_and_left_out_when_told_to(tmp_path):
    data = tmp_path / "data"
    names = _official(data)
    (data / "ucf101" / "UCF-101" / f"{names['train'][0]}").unlink()
    with pytest.raises(TargetError, match=rf"1 listed videos are not there \({names['train'][0]}\)"):
        prepare("ucf101", tmp_path, "data")
    with pytest.raises(TargetError, match="sskt prepare --target ucf101"):
        dataset_of("ucf101", Paths(data, tmp_path / "stores"))
    paths, said = prepare("ucf101", tmp_path, "data", allow_missing=True)
    assert any("left out, as asked" in text for text in said)
    listed = tmp_path / "stores" / "indexes" / "ucf101" / "left-out-1.txt"
    assert listed.read_text() == f"{names['train'][0]}\tnot there\n"
    dataset = dataset_of("ucf101", paths)
    assert dataset.ids.tolist() == [1, 2, 3], "ids are places in the official list"
    assert len(dataset.classes) == 101
    assert [dataset.classes[label] for label in dataset.labels] == [
        n.split("/")[0] for n in names["train"][1:]
    ]


def test_annotation_json_and_folders_of_frames_stand_for_lists_and_videos(tmp_path):
    data, other = tmp_path / "data", tmp_path / "other"
    names = _official(data)
    paths, _ = prepare("ucf101", tmp_path, "data")
    by_list = {split: dataset_of("ucf101", paths, split) for split in ("train", "test")}
    classes = (data / "ucf101" / "ucfTrainTestlist" / "classInd.txt").read_text().split()[1::2]
    database = {}
    for split, subset in (("train", "training"), ("test", "validation")):
        for name in names[split]:
            label, stem = name.removesuffix(".avi").split("/")
            database[stem] = {"subset": subset, "annotations": {"label": label}}
            folder = other / "ucf101" / "jpg" / label / stem
            folder.mkdir(parents=True)
            for i, frame in enumerate(decoded(data / "ucf101" / "UCF-101" / name)):
                Image.fromarray(frame).save(folder / f"image_{i + 1:05d}.png")
    (other / "ucf101" / "ucf101_01.json").write_text(json.dumps({"labels": classes, "database": database}))
    paths = Paths(other, tmp_path / "other stores")
    api.prepare("ucf101", paths=paths)
    for split, expected in by_list.items():
        found = dataset_of("ucf101", paths, split)
        assert found.classes == expected.classes
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_array_equal(found.contents, expected.contents)


def test_a_picture_beside_videos_makes_their_folder_no_video(tmp_path):
    root = tmp_path / "videos"
    for name in ("a", "b"):
        for i in range(3):
            make_video(root / name / "person1" / f"{i}.avi", n=3 + i)
    Image.new("RGB", (64, 48)).save(root / "a" / "person1" / "thumb.jpg")
    frames = root / "b" / "person2"  # and this one is a video
    frames.mkdir()
    Image.new("RGB", (64, 48)).save(frames / "frame1.jpg")
    _, said = prepare(f"videofolder:{root}", tmp_path)
    assert any("7 of 7 listed videos are packed" in text for text in said)
    mixed = root / "a" / "person1"
    assert f"{mixed}: holds pictures beside videos; the videos are taken, the pictures left out" in said


def test_a_stopped_preparation_goes_on_and_what_changed_is_packed_again(tmp_path):
    root = make_folder(tmp_path / "videos")
    target = f"videofolder:{root}"
    paths, said = prepare(target, tmp_path)
    assert "12 of 12 listed videos are packed (0 from before)" in packed_line(said)
    packs = sorted((tmp_path / "stores" / "indexes").rglob("*.frames"))
    before = dataset_of(target, paths)
    packs[0].unlink()  # as if stopped before it
    packs[1].write_bytes(packs[1].read_bytes()[:-100])  # torn
    data = bytearray(packs[2].read_bytes())
    data[50] ^= 1
    packs[2].write_bytes(data)
    with pytest.raises(TargetError, match="is not packed, or no longer; run `sskt prepare"):
        dataset_of(target, paths)
    _, said = prepare(target, tmp_path)
    assert "(9 from before)" in packed_line(said)
    np.testing.assert_array_equal(dataset_of(target, paths).contents, before.contents)
    make_video(root / "train" / "left" / "0.avi", n=9)
    with pytest.raises(TargetError, match=r"left/0\.avi: has changed since it was packed"):
        dataset_of(target, paths)
    _, said = prepare(target, tmp_path)
    assert "(11 from before)" in packed_line(said)
    assert dataset_of(target, paths).content_sha256 != before.content_sha256


def test_another_short_side_packs_anew_and_an_index_is_of_one_kind(tmp_path):
    root = make_folder(tmp_path / "videos", n_per_class=1)
    paths, _ = prepare(f"videofolder:{root}", tmp_path)
    assert dataset_of(f"videofolder:{root}", paths).sizes[0].tolist() == [20, 48, 64], "never enlarged"
    _, said = prepare(f"videofolder:{root}", tmp_path, packing=Packing(short_px=24, quality=80))
    assert "(0 from before), short side 24 px, JPEG quality 80" in packed_line(said)
    assert dataset_of(f"videofolder:{root}", paths).sizes[0].tolist() == [20, 24, 32]


def test_odd_files_are_packed_or_named(tmp_path):
    root = tmp_path / "videos"
    make_video(root / "good" / "odd size.mkv", codec="ffv1", pix_fmt="yuv444p", size=(47, 33))
    make_video(root / "good" / "one frame.avi", codec="mjpeg", pix_fmt="yuvj420p", n=1)
    make_video(root / "bad" / "fine.avi")
    make_sound(root / "bad" / "sound.avi")
    make_empty(root / "bad" / "empty.avi")
    (root / "bad" / "zero.mp4").write_bytes(b"")
    (root / "bad" / "text.avi").write_text("no video")
    os.mkfifo(root / "bad" / "pipe.avi")  # which nobody will ever write to
    (root / "bad" / "gone.avi").symlink_to(root / "nothing")
    with pytest.raises(TargetError, match="6 videos cannot be used") as caught:
        prepare(f"videofolder:{root}", tmp_path)
    for clause in (
        "bad/gone.avi: a link to nothing",
        "bad/empty.avi: no frame in it",
        "bad/pipe.avi: a link to nothing, or not a file",
        "bad/sound.avi: no video in it, only audio",
    ):
        assert clause in str(caught.value)
    paths, _ = prepare(f"videofolder:{root}", tmp_path, allow_missing=True)
    sizes = [dataset_of(f"videofolder:{root}", paths, s).sizes.tolist() for s in ("train", "test")]
    assert sorted(sizes[0] + sizes[1]) == [[1, 48, 64], [20, 47, 33], [20, 48, 64]]


def test_everything_left_out_is_in_a_file_and_the_command_that_goes_on_can_be_run(tmp_path):
    root = tmp_path / "my videos"
    make_video(root / "a" / "fine.avi", n=3)
    make_video(root / "b" / "fine.avi", n=3)
    for i in range(8):
        (root / "a" / f"{i}.avi").write_text("no video")
    with pytest.raises(TargetError, match="and 3 more") as caught:
        prepare(f"videofolder:{root}", tmp_path, packing=Packing(short_px=24))
    (listed,) = (tmp_path / "stores" / "indexes").rglob("left-out-1.txt")
    assert f"all in {listed}" in str(caught.value)
    reason = "Invalid data found when processing input"
    assert listed.read_text().splitlines() == [f"a/{i}.avi\t{reason}" for i in range(8)]
    words = shlex.split(str(caught.value).rpartition("go on without them: ")[2])
    assert words[1:4] == ["prepare", "--target", f"videofolder:{root}"]
    done = CliRunner().invoke(main, [*words[1:], "--json"])
    assert done.exit_code == 0, done.output
    assert sum(row["samples"] for row in json.loads(done.stdout)) == 2
    assert "(2 from before)" in done.stderr, "packed as before"


def test_fifty_damaged_videos_are_each_named_and_the_rest_is_packed(tmp_path):
    sources = sorted(shared("data/ucf101/UCF-101/Punch").glob("*.avi"))
    rng, root = random.Random(0), tmp_path / "videos"
    images = []
    for kind in ("JPEG", "PNG", "GIF"):
        Image.new("RGB", (320, 240), (90, 120, 30)).save(encoded := io.BytesIO(), format=kind)
        images.append(encoded.getvalue())
    for name in ("damaged", "whole"):
        (root / name).mkdir(parents=True)
    for i in range(50):
        data = bytearray(sources[i % len(sources)].read_bytes())
        suffix = ".avi"
        if i % 3 == 0:
            data = data[: rng.randrange(len(data) * 9 // 10)]
        elif i % 3 == 1:
            for _ in range(200):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        else:  # a picture, a text or noise by the name of a video
            suffix = rng.choice([".avi", ".mp4", ".mkv", ".webm"])
            data = rng.choice([b"RIFF" + rng.randbytes(4000), b"# text\n" * 99, rng.randbytes(9000), *images])
        (root / "damaged" / f"{i:02d}{suffix}").write_bytes(data)
    for i, source in enumerate(sources[:4]):
        shutil.copy(source, root / "whole" / f"{i}.avi")
    said = Remarks()
    paths = Paths(data_dir=tmp_path, cache_dir=tmp_path / "stores")
    api.prepare(f"videofolder:{root}", paths=paths, allow_missing=True)
    (record,) = (tmp_path / "stores" / "indexes").rglob("prepared-1.json")
    named = json.loads(record.read_text())["damaged"]
    assert sorted(named) == sorted(f"damaged/{p.name}" for p in (root / "damaged").iterdir())
    assert all(named.values())
    assert any("4 of 54 listed videos are packed" in text for text in said)


def _official(data):
    """A data folder with UCF101's official layout and all its classes, but six videos."""
    lists = shared("data/ucf101/ucfTrainTestlist")
    target = data / "ucf101"
    (target / "ucfTrainTestlist").mkdir(parents=True)
    shutil.copy(lists / "classInd.txt", target / "ucfTrainTestlist")
    names = {}
    for split in ("train", "test"):
        lines = (lists / f"{split}list01.txt").read_text().splitlines()[:: 2000 if split == "train" else 1800]
        names[split] = [line.split()[0] for line in lines][: 4 if split == "train" else 2]
        (target / "ucfTrainTestlist" / f"{split}list01.txt").write_text("\n".join(lines[: len(names[split])]))
        for i, name in enumerate(names[split]):
            make_video(target / "UCF-101" / name, n=5 + i)
    return names
