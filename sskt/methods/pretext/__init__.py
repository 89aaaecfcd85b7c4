"""Pretext tasks by name: what the teachers of graph distillation learn from videos alone, before they are
fine-tuned (Zhang and Peng, IJCAI 2018, section 3.1).
"""

from __future__ import annotations

from sskt.methods.pretext.egomotion import Egomotion
from sskt.methods.pretext.pretext import Pretext
from sskt.methods.pretext.sorting import Sorting

__all__ = ["PRETEXT_METHODS", "Pretext"]

PRETEXT_METHODS: dict[str, type[Pretext]] = {task.task: task for task in (Sorting, Egomotion)}
