"""Frames of a video in a folder: one name pattern, in the order of its numbers, the rest counted; and videos
of every suffix.
"""

import os

import av
import numpy as np
import pytest
from listening import Remarks
from PIL import Image
from videos import grey, make_video

from pipeline import api
from pipeline.api import Paths, open_dataset
from pipeline.data.datasets.video.decode import VIDEO_SUFFIXES, decode_frames
from pipeline.data.datasets.video.sequence import find_sequence
from sskt.errors import UnreadableError


def frames(folder, names, size=(64, 48)):
    """One image each, the level of the n-th is 10 n."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        Image.new("RGB", size, (10 * i,) * 3).save(folder / name)
    return folder


def taken(folder):
    return [path.name for path in find_sequence(folder).frames]


def numbered(pattern, numbers=range(1, 13)):
    return [pattern.format(i) for i in numbers]


@pytest.mark.parametrize(
    ("frame", "others"),
    [
        ("img_{:05}.jpg", ["flow_x_{:05}.jpg", "flow_y_{:05}.jpg"]),
        ("frame{}.png", ["depth{}.png", "mask_{}.png"]),
        ("{:06}.jpg", ["{:06}_flow.png", "thumb{}.jpg"]),
        ("v_Walk_g01_c02_{:04}.jpg", ["v_Walk_g01_c02_flow_{:04}.jpg"]),
        ("rgb_{}.webp", ["ir_{}.webp", "left_{}.webp"]),
        ("take2_{}.bmp", []),
    ],
)
def test_of_several_patterns_the_colour_images_are_the_frames(tmp_path, frame, others):
    wanted = numbered(frame)
    beside = [name for other in others for name in numbered(other)] + [
        "cover.jpg",
        ".hidden_1.jpg",
        "notes.txt",
    ]
    frames(tmp_path / "v", [name for name in wanted + beside if not name.endswith(".txt")])
    (tmp_path / "v" / "notes.txt").write_text("x")
    found = find_sequence(tmp_path / "v")
    assert [path.name for path in found.frames] == wanted  # 2 before 10
    assert sorted(path.name for path in found.left_out) == sorted(
        set(beside) - {".hidden_1.jpg", "notes.txt"}
    )
    assert found.n_missing == 0


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (numbered("left_{}.jpg") + numbered("right_{}.jpg"), "frames by 2 kinds of names"),
        (numbered("flow_x_{}.jpg") + numbered("flow_y_{}.jpg"), "cannot be told"),
        (numbered("cam1_{:03}.jpg") + numbered("cam2_{:03}.jpg", range(1, 9)), "frames of 2 sequences"),
        (["img_1.jpg", "img_01.jpg", "img_2.jpg"], "are the same frame"),
        (["img_1.jpg", "img_1.png", "img_2.jpg"], "are the same frame"),
    ],
)
def test_a_folder_of_which_it_cannot_be_told_is_refused(tmp_path, names, why):
    with pytest.raises(UnreadableError, match=why):
        list(decode_frames(frames(tmp_path / "v", names)))


@pytest.mark.parametrize(
    ("numbers", "missing"),
    [([1, 2, 3, 5, 6, 10], 4), ([0, 5, 10, 15], 0), ([0, 5, 10, 20, 25], 1), ([7], 0), ([3, 4], 0)],
)
def test_missing_numbers_are_counted_in_the_steps_of_the_sequence(tmp_path, numbers, missing):
    assert find_sequence(frames(tmp_path / "v", numbered("img_{}.png", numbers))).n_missing == missing


def test_names_with_times_are_one_sequence(tmp_path):
    names = [f"2024-01-0{day} 12.{minute:02}.30.png" for day in (1, 2) for minute in (1, 5, 9 + day)]
    assert taken(frames(tmp_path / "v", names)) == names


def test_frames_of_another_shape_are_refused_and_of_another_size_resized(tmp_path):
    folder = frames(tmp_path / "v", numbered("img_{}.png", range(4)))
    Image.new("RGB", (128, 96)).save(folder / "img_4.png")
    assert [frame.size for frame in decode_frames(folder)][3:] == [(64, 48), (128, 96)]
    Image.new("RGB", (48, 64)).save(folder / "img_5.png")
    with pytest.raises(UnreadableError, match="frame 5 is 48 x 64, those before are 64 x 48"):
        list(decode_frames(folder))


def test_12_bit_frames_keep_their_range(tmp_path):
    (tmp_path / "v").mkdir()
    for i in range(3):
        Image.fromarray(np.full((8, 8), 1000 * i + 100, dtype=np.uint16)).save(tmp_path / "v" / f"{i}.png")
    assert [np.asarray(frame).max() for frame in decode_frames(tmp_path / "v")] == [
        100 >> 4,
        1100 >> 4,
        2100 >> 4,
    ]


KINDS = {".ts": "mpeg2video", ".vob": "mpeg2video", ".m2v": "mpeg2video", ".mxf": "mpeg2video"}
KINDS |= {".3gp": "mpeg4", ".asf": "mpeg4", ".nut": "mpeg4", ".ivf": "libvpx", ".flv": "flv1", ".wmv": "wmv2"}


@pytest.mark.parametrize("suffix", KINDS)
def test_videos_of_other_suffixes_are_read_whole(tmp_path, suffix):
    assert suffix in VIDEO_SUFFIXES
    path = make_video(tmp_path / f"a{suffix}", codec=KINDS[suffix], size=(144, 176))
    levels = [float(np.asarray(frame)[:, -8:].mean()) for frame in decode_frames(path)]
    np.testing.assert_allclose(levels, [grey(i) for i in range(20)], atol=4)


def test_an_animated_gif_is_a_video_a_cut_or_still_one_is_not(tmp_path):
    drawn = [Image.new("L", (64, 48), grey(i)) for i in range(20)]
    drawn[0].save(tmp_path / "a.gif", save_all=True, append_images=drawn[1:])
    assert [int(np.asarray(frame).mean()) for frame in decode_frames(tmp_path / "a.gif")] == [
        grey(i) for i in range(20)
    ]
    data = (tmp_path / "a.gif").read_bytes()
    (tmp_path / "a.gif").write_bytes(data[: len(data) // 2])
    with pytest.raises(UnreadableError, match="cut off"):
        list(decode_frames(tmp_path / "a.gif"))
    drawn[0].save(tmp_path / "b.gif")
    with pytest.raises(UnreadableError, match="a picture"):
        list(decode_frames(tmp_path / "b.gif"))


def test_videos_gifs_and_folders_of_frames_are_mixed_and_the_rest_is_counted_and_listed(tmp_path):
    root, strange = tmp_path / "acts", os.fsdecode(b"gr\xfcn\n")
    for name in ("walk", strange):
        make_video(root / name / f"{strange}.avi")
        make_video(root / name / ("z" * 240 + ".ts"), codec="mpeg2video", size=(144, 176))
        frames(root / name / "frames", [*numbered("img_{}.png", [1, 2, 5]), "flow_1.png", "flow_2.png"])
        Image.new("L", (8, 8)).save(root / name / "frames" / "preview.gif")
        (root / name / f"{strange}.srt").write_text("words")
        (root / name / ".DS_Store").write_text("x")
    paths, said = Paths(data_dir=tmp_path, cache_dir=tmp_path / "stores"), Remarks()
    api.prepare(f"videofolder:{root}", paths=paths)
    text = "\n".join(said)
    assert "6 files ignored (2 " in text
    for kind in ("2 hidden", "2 .srt", "2 preview of frames"):
        assert kind in text
    assert "4 images in 2 folders are none of the frames, by their names, and are left out" in text
    assert "4 frames are missing in 2 folders" in text
    assert "6 of 6 listed videos are packed" in text
    (ignored,) = paths.index_dir.rglob("*-ignored.txt")
    assert ignored.read_bytes().count(b"gr\xfcn\\n.srt\t.srt\n") == 2
    (others,) = paths.index_dir.rglob("*-other-images.txt")
    assert others.read_text(errors="surrogateescape").count("flow_1.png\tnot of its frames") == 2
    datasets = [open_dataset(f"videofolder:{root}", split, paths=paths) for split in ("train", "test")]
    assert datasets[0].classes == tuple(sorted(["walk", strange], key=os.fsencode))
    lengths = sorted(length for dataset in datasets for length in dataset.sizes[:, 0])
    assert lengths == [3, 3, 20, 20, 20, 20]


def test_a_video_whose_name_is_not_utf8_is_decoded_as_any_other(tmp_path):
    path = make_video(tmp_path / "a.mp4", codec="libx264")
    strange = tmp_path / os.fsdecode(b"\xff\xfe %d.mp4")
    strange.write_bytes(path.read_bytes())
    with av.open(str(path)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    np.testing.assert_array_equal([np.asarray(frame) for frame in decode_frames(strange)], expected)
