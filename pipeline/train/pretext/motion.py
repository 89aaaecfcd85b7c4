"""How much moves between neighbouring frames of a video, by which frame sorting chooses its frames (Lee et
al., ICCV 2017, who use optical flow).
"""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data import Dataset, Packs
from pipeline.train.pretext.per_video import PerVideo
from sskt.errors import TargetError

_SHRUNK = 8  # a JPEG file is decoded at an eighth of its size without computing the rest
_STEPS = 256  # of a grey level


def motion_of(dataset: Dataset, row: int) -> NDArray[np.int64]:
    """The motion of a video before each of its frames, int64 (T,): the sum, over pairs of neighbours, of
    their mean absolute difference in 1/256 grey levels. Raises TargetError for a damaged frame.
    """
    packs = dataset.access
    assert isinstance(packs, Packs)  # noqa: S101 - the access of every index of videos
    n = int(dataset.sizes[row, 0])
    frames = [_small(packs, row, number) for number in range(n)]
    differences = [np.abs(b - a).mean() for a, b in pairwise(frames)]
    steps: NDArray[np.int64] = np.rint(_STEPS * np.array([0.0, *differences])).astype(np.int64)
    return np.cumsum(steps)


def _small(packs: Packs, row: int, number: int) -> NDArray[np.float32]:
    """A frame in grey, at an eighth of its size."""
    try:
        image = Image.open(io.BytesIO(packs.frame(row, number)))
        image.draft("L", (image.width // _SHRUNK, image.height // _SHRUNK))
        return np.asarray(image.convert("L"), dtype=np.float32)
    except (OSError, ValueError, SyntaxError) as error:
        raise TargetError(
            f"{packs.name_of(row)} frame {number}: is damaged since it was packed ({error}); run "
            f"sskt prepare again"
        ) from None


MOTION = PerVideo("motion-1", "motion", motion_of)
