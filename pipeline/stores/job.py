"""A job of stage one: which dataset, sources and plan, and how many views."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.data import Dataset, Plan
from pipeline.stores.fingerprint import source_plan
from sskt.sources import InputMap, Source


@dataclass(frozen=True, slots=True)
class Job:
    """What stage one has to do for one target.

    `target` is the name that the user gave, which a store records beside its fingerprint. `top_k` is the
    number of classes to keep per row, 0 for all; None keeps all up to DENSE_BUDGET.
    """

    target: str
    dataset: Dataset
    sources: list[tuple[Source, InputMap]]  # at least one; all see the same frames of clips
    plan: Plan
    views: int
    top_k: int | None = None

    @property
    def source_plan(self) -> Plan:
        """The plan as rendered for the sources, which all see the same frames."""
        return source_plan(self.sources[0][1], self.plan)

    @property
    def name(self) -> str:
        """The target and its split, for messages."""
        return f"{self.dataset.target}/{self.dataset.split}"
