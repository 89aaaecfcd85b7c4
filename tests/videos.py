"""Videos for tests: small ones made here, and the real ones beside the checkout."""

from pathlib import Path

import av
import numpy as np

SIZE = (48, 64)  # height, width


def grey(i):
    """Frame i of a made video: a level that rises with i."""
    return 20 + 8 * i


def make_video(
    path,
    *,
    n=20,
    codec="mpeg4",
    pix_fmt="yuv420p",
    size=SIZE,
    b_frames=0,
    times=None,
    mirrored=False,
    turn=None,
    options=None,
    codec_options=None,
):
    """Frames whose right half has the level `grey(i)` and whose left half the opposite; `turn` is a note that
    they are to be shown turned counter-clockwise by so many degrees.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = size
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=25, options=codec_options or {})
        if turn is not None:
            stream.set_display_rotation(turn)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.bit_rate = 4_000_000
        stream.codec_context.max_b_frames = b_frames
        for i in range(n):
            image = np.full((height, width, 3), grey(i), dtype=np.uint8)
            image[:, : width // 2] = 255 - grey(i)
            frame = av.VideoFrame.from_ndarray(image[:, ::-1].copy() if mirrored else image, format="rgb24")
            if times is not None:
                frame.pts = times[i]
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def make_sound(path):
    """A file with sound and no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        for packet in stream.encode(frame):
            container.mux(packet)
    return path


def make_empty(path):
    """A file that promises pictures and holds none."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        container.start_encoding()
    return path


def make_folder(root, n_per_class=4, n_frames=20):
    """ROOT/{train,val}/{left,right}/*.avi: two classes that are mirror images of each other."""
    for split, count in (("train", n_per_class), ("val", 2)):
        for name in ("left", "right"):
            for i in range(count):
                path = root / split / name / f"{i}.avi"
                make_video(path, n=n_frames + i, mirrored=name == "right")
    return root


def decoded(path: Path):
    """Every frame by PyAV itself: uint8 (T, H, W, 3)."""
    with av.open(str(path), metadata_errors="ignore") as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
