"""Probes: what source logits know of a target's classes, as linear models fitted on rows in seconds.

A probe is a teacher of the target's own task: a multinomial (with several labels per image, one binary)
logistic regression from the logits of one or more sources to the target's classes.
"""

from sskt.probe.calibration import calibrate, expected_calibration_error
from sskt.probe.cross_fitted import CrossFit, CrossFittedProbe, cross_fit, folds_of
from sskt.probe.features import probe_features
from sskt.probe.linear import STRENGTHS, LinearProbe, fit_linear
from sskt.probe.scores import agreement, h_score, knn_predictions, leep

__all__ = [
    "STRENGTHS",
    "CrossFit",
    "CrossFittedProbe",
    "LinearProbe",
    "agreement",
    "calibrate",
    "cross_fit",
    "expected_calibration_error",
    "fit_linear",
    "folds_of",
    "h_score",
    "knn_predictions",
    "leep",
    "probe_features",
]
