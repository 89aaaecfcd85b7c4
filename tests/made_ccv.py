"""A small CCV of made videos, in the official form."""

import numpy as np
from videos import make_video

CATEGORIES = [f"category{i}" for i in range(20)]
# id: the categories that it shows; ids may begin with a dash, and some videos show nothing
TRAIN = {
    "-aBcdefghi1": {0},
    "bBcdefghi_2": {0, 3},
    "-_cdefghi-3": set(),
    "dBcdefghi-4": {1},
    "EBcdefghi-5": set(),
    "eBcdefghi-6": {2, 3, 4},
}
TEST = {"-tBcdefghi1": {0, 1}, "tBcdefghi-2": set(), "uBcdefghi-3": {2, 3}, "vBcdefghi-4": {4}}
GONE = ("dBcdefghi-4", "vBcdefghi-4")


def multi_hot(videos):
    return np.array([[int(c in shown) for c in range(20)] for shown in videos.values()], dtype=np.int8)


def make_ccv(data, *, videos=True):
    """The official form: a space ends each row of labels, and no line break the last category."""
    root = data / "ccv"
    root.mkdir(parents=True)
    (root / "categoryName.txt").write_text("\n".join(CATEGORIES))
    for split, named in (("train", TRAIN), ("test", TEST)):
        (root / f"{split}VidID.txt").write_text("".join(f"{name}\n" for name in named))
        rows = ("".join(f"{value} " for value in row) + "\n" for row in multi_hot(named))
        (root / f"{split}Label.txt").write_text("".join(rows))
    for i, name in enumerate([*TRAIN, *TEST]):
        if videos and name not in GONE:
            make_video(root / "videos" / f"{name}{('.mp4', '.avi')[i % 2]}", n=22, size=(48, 64 + 4 * i))
    return root
