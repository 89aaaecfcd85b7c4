"""The frames of one video: all of them, in order and upright, or the reason why not."""

import av
import numpy as np
import pytest
from PIL import Image
from videos import decoded, grey, make_video

from pipeline.data.datasets.video.decode import decode_frames
from sskt.errors import UnreadableError


def levels(path):
    """The level of every frame's right edge."""
    return [float(np.asarray(frame)[:, -8:].mean()) for frame in decode_frames(path)]


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "mpeg4"), ("a.mkv", "libx264"), ("a.webm", "libvpx")])
def test_a_matroska_file_that_is_cut_off_is_refused_wherever_it_is_cut(tmp_path, name, codec):
    whole = make_video(tmp_path / name, codec=codec, n=28)
    assert len(levels(whole)) == 28
    data = whole.read_bytes()
    for share in (0.1, 0.3, 0.5, 0.7):
        whole.write_bytes(data[: int(share * len(data))])
        with pytest.raises(UnreadableError):
            levels(whole)


def test_sound_that_outlasts_the_picture_is_no_damage(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        video, sound = container.add_stream("mpeg4", rate=25), container.add_stream("pcm_s16le", rate=8000)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.int16), format="s16", layout="mono")
        silence.sample_rate = 8000
        for stream, frames in ((video, [av.VideoFrame(64, 48) for _ in range(10)]), (sound, [silence])):
            for packet in [p for frame in (*frames, None) for p in stream.encode(frame)]:
                container.mux(packet)
    assert len(levels(path)) == 10
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UnreadableError, match="cut off"):
        levels(path)


def test_a_video_trimmed_without_encoding_it_again_is_whole_and_a_cut_one_is_not(tmp_path):
    whole = make_video(tmp_path / "whole.mp4", codec="libx264", n=29, codec_options={"g": "20"})
    trimmed = tmp_path / "trimmed.mp4"
    with av.open(str(whole)) as source, av.open(str(trimmed), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                late = int(10 / 25 / packet.time_base)  # ten frames go before the beginning
                packet.pts, packet.dts, packet.stream = packet.pts - late, packet.dts - late, stream
                target.mux(packet)
    with av.open(str(trimmed)) as container:
        assert container.streams.video[0].frames == 29
    np.testing.assert_allclose(levels(trimmed), [grey(i) for i in range(10, 29)], atol=3.5)
    streamed = make_video(tmp_path / "s.mp4", codec="libx264", n=29, options={"movflags": "faststart"})
    with av.open(str(streamed)) as container:
        ends = [packet.pos for packet in container.demux(video=0) if packet.size]
    data = streamed.read_bytes()
    for end in (ends[10], ends[20]):  # between two frames
        streamed.write_bytes(data[:end])
        with pytest.raises(UnreadableError, match=r"cut off, \d+ of its 29 frames are there"):
            levels(streamed)


def test_a_video_that_no_decoder_knows_is_refused(tmp_path):
    path = make_video(tmp_path / "a.mp4", codec="libx264", n=3)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(UnreadableError, match="no decoder for its video"):
        levels(path)


def test_frames_in_a_folder_come_in_the_order_of_the_numbers_in_their_names(tmp_path):
    for i in range(1, 13):
        Image.new("L", (8, 8), 10 * i).save(tmp_path / f"frame{i}.png")
    assert levels(tmp_path) == [10.0 * i for i in range(1, 13)]


@pytest.mark.parametrize("turn", [90, -90, 180])
def test_frames_are_turned_as_the_file_says(tmp_path, turn):
    path = make_video(tmp_path / "a.mp4", codec="libx264", n=3, turn=turn)
    for frame, stored in zip(decode_frames(path), decoded(path), strict=True):
        np.testing.assert_array_equal(np.asarray(frame), np.rot90(stored, turn // 90))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_a_picture_by_the_name_of_a_video_is_refused(tmp_path, kind):
    Image.new("RGB", (64, 48), (200, 30, 30)).save(tmp_path / "a.avi", format=kind)
    with pytest.raises(UnreadableError, match=r"a picture \(\w+\), not a video"):
        levels(tmp_path / "a.avi")


def test_a_reason_has_neither_error_number_nor_path(tmp_path):
    (tmp_path / "a.avi").write_text("no video")
    with pytest.raises(UnreadableError) as caught:
        levels(tmp_path / "a.avi")
    assert str(caught.value) == "Invalid data found when processing input"
