"""Pretext tasks by name: what the teachers of graph distillation learn from videos alone, before they are
fine-tuned (Zhang and Peng, IJCAI 2018, section 3.1).
"""

from __future__ import annotations

from sskt.methods.pretext.egomotion import Egomotion
from sskt.methods.pretext.prediction import Prediction
from sskt.methods.pretext.pretext import Pretext
from sskt.methods.pretext.sorting import Sorting
from sskt.methods.pretext.tracking import Tracking

__all__ = ["PRETEXT_METHODS", "Pretext"]

PRETEXT_METHODS: dict[str, type[Pretext]] = {
    task.task: task for task in (Sorting, Egomotion, Tracking, Prediction)
}
