"""CCV: videos of several labels or none, by the official lists; what is missing is counted, what contradicts
is refused.
"""

import hashlib
import shutil
import struct

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import shared
from listening import Remarks
from made_ccv import GONE, TEST, TRAIN, make_ccv, multi_hot
from sklearn.metrics import average_precision_score
from videos import decoded, make_video

from cli import main
from pipeline import api
from pipeline.api import Augmentation, Paths, choose_execution, open_dataset
from pipeline.data import centre_frame, parse_target
from pipeline.data.datasets.video.dataset import frames_dataset
from pipeline.data.datasets.video.pack import Packing, is_sound, read_pack, write_pack
from pipeline.train.evaluate import Evaluator
from pipeline.train.splits import choosing
from sskt.errors import TargetError
from sskt.metrics import multilabel_figures
from sskt.students import build_backbone
from sskt.students.student import Student

CPU = choose_execution(device="cpu", renderer="torch", threads=1)


@pytest.fixture(scope="module")
def ccv(tmp_path_factory):
    """Prepared without the videos that are gone."""
    folder = tmp_path_factory.mktemp("ccv")
    make_ccv(folder / "data")
    paths = Paths(folder / "data", folder / "stores")
    api.prepare("ccv", paths=paths, allow_missing=True)
    return paths


def test_the_official_files_are_read_as_counted_by_hand():
    """GRAPH.md's counts: of no category, of one, of several, and the positives of a class."""
    listing = parse_target("ccv").list_videos(shared("data"))
    assert (listing.classes[0], listing.classes[-1], len(listing.classes)) == ("Basketball", "Playground", 20)
    for split, counts in (("train", (1009, 3368, 282)), ("test", (987, 3405, 266))):
        rows = np.array([clip.multi_hot for clip in listing.clips[split]])
        n = rows.sum(axis=1)
        assert (int((n == 0).sum()), int((n == 1).sum()), int((n > 1).sum())) == counts
        assert rows.sum(axis=0).min() >= 100
        assert [c.label for c in listing.clips[split]] == [int(r.argmax()) if r.any() else -1 for r in rows]
    first = listing.clips["train"][0]
    assert (first.name, first.source) == ("1MdlncaU5JE", None)
    assert any(clip.name.startswith("-") for clip in listing.clips["train"])


def test_made_videos_have_the_labels_of_their_lines_and_what_is_gone_is_counted(ccv):
    said = Remarks()
    for split, named in (("train", TRAIN), ("test", TEST)):
        dataset = open_dataset(split=split, target="ccv", paths=ccv)
        there = [i for i, name in enumerate(named) if name not in GONE]
        assert dataset.ids.tolist() == there, "places in the official list"
        np.testing.assert_array_equal(dataset.multi_hot, multi_hot(named)[there])
        assert dataset.is_labelled.all(), "a video of no category is labelled: it shows none"
        assert f"ccv: 1 of {len(named)} {split} videos are left out, as --allow-missing said" in said
    assert any("the train split has no sample of 16 of the 20 classes (category1, " in text for text in said)
    listed = ccv.index_dir / "ccv" / "left-out-1.txt"
    assert listed.read_text() == "dBcdefghi-4\tnot there\nvBcdefghi-4\tnot there\n"


def test_prepare_tells_what_to_fetch_and_where_to_put_it(tmp_path):
    data = tmp_path / "data"

    def prepare(*more):
        where = ("--data-dir", str(data), "--cache-dir", str(tmp_path / "stores"))
        return CliRunner().invoke(main, ["prepare", "--target", "ccv", *where, *more])

    said = prepare()
    assert said.exit_code == 1
    assert "categoryName.txt: no such file; ask for the CCV database" in said.output
    root = make_ccv(data, videos=False)
    said = prepare()
    assert said.exit_code == 1
    assert "10 listed videos are not there" in said.output
    assert "ccv/videos/ID.mp4" in said.output
    left_out = tmp_path / "stores" / "indexes" / "ccv" / "left-out-1.txt"
    assert [line.split("\t")[0] for line in left_out.read_text().splitlines()] == sorted({**TRAIN, **TEST})
    make_video(root / "videos" / "-aBcdefghi1.mkv")
    make_video(root / "videos" / "-aBcdefghi1.mp4")
    make_video(root / "videos" / "stranger.mp4")
    (root / "videos" / "tBcdefghi-2.mp4.part").write_bytes(b"half")
    said = prepare("--every", "1")
    assert said.exit_code == 1
    assert "sskt prepare --target ccv --every 1 --allow-missing" in said.output
    assert "1 files are second videos of an id" in said.output
    assert "-aBcdefghi1.mp4 is left out" in said.output
    assert "3 files ignored (1 second of an id, 1 of no listed id, 1 .part)" in said.output


def damage(root, name, old, new):
    path = root / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (
            "trainLabel.txt",
            "1 0 0 0 0",
            "1 0 0 0",
            "trainLabel.txt: line 1 is '1 0 0 .*expected 20 times 0 or 1",
        ),
        ("testLabel.txt", "0 0 0 0 \n", "0 0 0 2 \n", "testLabel.txt: line 1 is .*expected 20 times 0 or 1"),
        ("testVidID.txt", "tBcdefghi-2\n", "", "testLabel.txt: has 4 rows for the 3 ids of testVidID.txt"),
        (
            "trainVidID.txt",
            "bBcdefghi_2",
            "../elsewhere",
            "trainVidID.txt: line 2 is '../elsewhere', expected a Y",
        ),
        ("trainVidID.txt", "bBcdefghi_2\n", "\n", "trainVidID.txt: line 2 is '', expected a YouTube id"),
        ("testVidID.txt", "tBcdefghi-2", "bBcdefghi_2", "have the id bBcdefghi_2 twice"),
        ("categoryName.txt", "category7\n", "", "categoryName.txt: names 19 categories, expected 20"),
    ],
)
def test_lists_that_contradict_each_other_are_refused_in_one_line(tmp_path, name, old, new, message):
    root = make_ccv(tmp_path, videos=False)
    damage(root, name, old, new)
    with pytest.raises(TargetError, match=message) as refused:
        parse_target("ccv").list_videos(tmp_path)
    assert "\n" not in str(refused.value)


def test_one_of_five_frames_is_packed_and_they_are_pyavs_own(ccv):
    dataset = open_dataset("ccv", "train", paths=ccv)
    frames, row = frames_dataset(dataset), 0
    truth = decoded(ccv.data_dir / "ccv" / "videos" / "-aBcdefghi1.mp4")
    assert dataset.sizes[row, 0] == len(truth[::5]) < len(truth)
    for i, image in enumerate(truth[::5]):
        assert np.abs(frames.pixels_of(i).astype(int) - image).mean() < 3, (
            "a frame beside it is 8 levels away"
        )


def test_packs_of_every_frame_are_as_they_were_and_others_have_their_own_magic(tmp_path):
    video = make_video(tmp_path / "a.avi", n=11)
    whole, some = tmp_path / "whole", tmp_path / "some"
    write_pack(video, whole, Packing())
    data = whole.read_bytes()
    # the layout of the first version, by hand
    n, height, width, short, quality, nbytes, mtime, content, magic = struct.unpack(
        "<IIIIIQq16s8s", data[-60:]
    )
    assert (n, height, width, short, quality, magic) == (11, 48, 64, 128, 90, b"SSKTvid1")
    assert (nbytes, mtime) == (video.stat().st_size, video.stat().st_mtime_ns)
    offsets = np.frombuffer(data[-60 - 8 * 12 : -60], dtype="<u8")
    assert content == hashlib.sha256(offsets.tobytes() + data[: offsets[-1]]).digest()[:16]
    assert read_pack(whole).packing == Packing(every=1)
    for every in (2, 5, 100):
        packed = write_pack(video, some, Packing(every=every))
        assert some.read_bytes().endswith(b"SSKTvid2")
        assert read_pack(some) == packed
        assert is_sound(some, packed)
        assert (packed.n_frames, packed.packing.every) == (len(range(0, 11, every)), every)
        assert packed.content != content
    some.write_bytes(some.read_bytes()[:-1])
    assert read_pack(some) is None


def test_what_was_prepared_before_frames_could_be_left_out_is_read(tmp_path):
    for name, n in (("a/1", 20), ("a/2", 21), ("b/1", 22)):
        make_video(tmp_path / "v" / f"{name}.avi", n=n)
    target, paths = f"videofolder:{tmp_path / 'v'}", Paths(tmp_path, tmp_path / "stores")
    (before,) = (row["contents"] for row in api.prepare(target, paths=paths) if row["split"] == "train")
    (record,) = (tmp_path / "stores").rglob("prepared-1.json")
    record.write_text(record.read_text().replace(',\n    "every": 1', ""))
    assert "every" not in record.read_text()
    assert open_dataset(target, "train", paths=paths).content_sha256 == before
    shutil.copytree(tmp_path / "v", tmp_path / "moved")  # adopted without decoding
    moved = open_dataset(f"videofolder:{tmp_path / 'moved'}", "train", paths=paths)
    assert moved.content_sha256 == before


def test_a_video_of_no_category_is_a_stratum_of_its_own(ccv):
    dataset = open_dataset("ccv", "train", paths=ccv)
    assert dataset.labels.tolist() == [0, 0, -1, -1, 2]
    chosen = choosing(dataset, 0.4)
    assert chosen[dataset.labels == -1].sum() == 1
    assert chosen[dataset.labels == 0].sum() == 1


def test_plain_average_precision_is_sklearns():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(80, 20)).round(1)  # with ties
    truth = (rng.random((80, 20)) < 0.1).astype(np.int8)
    truth[:, 5] = 0  # of which no video shows anything
    expected = [average_precision_score(t, s) for t, s in zip(truth.T, scores.T, strict=True) if t.any()]
    found = multilabel_figures(scores, truth)
    assert found["test_map_plain"] == pytest.approx(100 * np.mean(expected), abs=1e-9)
    assert found["test_map_plain"] < found["test_map"], "VOC's area fills the dips in"


def test_the_answer_about_a_video_is_the_mean_of_each_categorys_probability(ccv):
    dataset = open_dataset("ccv", "test", paths=ccv)
    clips = Augmentation(side_px=64, n_frames=2).evaluation_plan(parse_target("ccv"), n_clips=3)
    plan = centre_frame(clips)
    torch.manual_seed(0)
    student = Student(build_backbone("alexnet-small"), 20, {}, transfer_module=False)
    with torch.no_grad():
        student.head.weight *= 100  # sure, and not alike in all clips
    evaluator = Evaluator(dataset, plan, CPU)
    views = torch.stack([*evaluator.predict(student, "fp32")]).double()
    assert (views[0] - views[1]).abs().max() > 0.1
    figures = evaluator.accuracy(student, "fp32")
    mean = views.sigmoid().mean(dim=0).numpy()
    expected = [
        average_precision_score(t, s) for t, s in zip(dataset.multi_hot.T, mean.T, strict=True) if t.any()
    ]
    assert figures["test_map_plain"] == pytest.approx(100 * np.mean(expected), abs=1e-6)
    truth = torch.from_numpy(dataset.multi_hot).double().expand(3, -1, -1)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(views, truth)
    assert figures["test_loss"] == pytest.approx(float(loss), rel=1e-5)


def test_a_student_learns_from_videos_of_several_labels(ccv, tmp_path):
    summary = api.train(
        "ccv", model="alexnet-small", method="scratch", out=tmp_path / "run", paths=ccv, execution=CPU,
        augmentation=Augmentation(side_px=64), epochs=1, batch_size=4,
    )  # fmt: skip
    assert summary["metric"] == "test_map"
    assert 0 <= summary["test_map_plain"] <= 100
    found = api.evaluate(tmp_path / "run", paths=ccv, execution=CPU, clips=2)
    assert found["n_samples"] == 3
    assert found["n_clips"] == 2
    assert found["classes"]["category4"] is None, "its only test video is gone"
