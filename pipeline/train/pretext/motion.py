"""How much moves between neighbouring frames of a video, by which frame sorting chooses its frames (Lee et
al., ICCV 2017, who use optical flow).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.data import Dataset
from pipeline.train.pretext.grey import grey_frame
from pipeline.train.pretext.per_video import PerVideo

_SCALE = 1 / 8  # the least at which a JPEG file is decoded
_STEPS = 256  # of a grey level


def motion_of(dataset: Dataset, row: int) -> NDArray[np.int64]:
    """The motion of a video before each of its frames, int64 (T,): the sum, over pairs of neighbours, of
    their mean absolute difference in 1/256 grey levels. Raises TargetError for a damaged frame.
    """
    n = int(dataset.sizes[row, 0])
    frames = [np.asarray(grey_frame(dataset, row, t, _SCALE), dtype=np.float32) for t in range(n)]
    differences = [np.abs(b - a).mean() for a, b in pairwise(frames)]
    steps: NDArray[np.int64] = np.rint(_STEPS * np.array([0.0, *differences])).astype(np.int64)
    return np.cumsum(steps)


MOTION = PerVideo("motion-1", "motion", motion_of)
