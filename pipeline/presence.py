"""Figures of pictures with several labels: average precision by class, as VOC has it, and by picture, as the
released SSKT code has it but for pictures that show nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sskt.metrics import average_precision, voc_average_precision


def presence_figures(scores: NDArray[np.float32], presence: NDArray[np.int8]) -> dict[str, float]:
    """In percent: test_map, the mean over classes of VOC's area; test_map_11, of its eleven points; and
    test_image_ap, the mean over pictures of the average precision of a picture's classes.

    scores, presence: (N, C); what is not counted (-1) is left out. Classes and pictures without anything
    present do not count. Departs from the released code: there a picture that shows nothing counts 0 in the
    mean over pictures, and a class whose objects are all difficult counts as absent.
    """
    by_class = class_precisions(scores, presence)
    eleven = [
        voc_average_precision(scores[counted, c], presence[counted, c] == 1, eleven_points=True)
        for c, counted in enumerate((presence >= 0).T)
    ]
    by_picture = [
        average_precision(row[counted], there[counted] == 1)
        for row, there, counted in zip(scores, presence, presence >= 0, strict=True)
    ]
    return {
        "test_map": 100 * float(np.nanmean(by_class)),
        "test_map_11": 100 * float(np.nanmean(eleven)),
        "test_image_ap": 100 * float(np.nanmean(by_picture)),
    }


def class_precisions(scores: NDArray[np.float32], presence: NDArray[np.int8]) -> list[float]:
    """VOC's average precision (area) of every class; NaN for one that no picture shows."""
    return [
        voc_average_precision(scores[counted, c], presence[counted, c] == 1, eleven_points=False)
        for c, counted in enumerate((presence >= 0).T)
    ]
