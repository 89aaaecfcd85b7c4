"""A job of stage one: whose pictures, which sources, how many views, and the store that each source's logits
belong in.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.data.datasets.dataset import Dataset
from pipeline.data.plan import Plan
from pipeline.stores.fingerprint import source_plan
from sskt.sources import InputMap, Source


@dataclass(frozen=True, slots=True)
class Job:
    """What stage one is to do for one target.

    `target` is the name that it was asked for by, which a store records beside its fingerprint. `top_k` is
    the number of classes to keep of every row, 0 for all; None takes all below DENSE_BUDGET.
    """

    target: str
    dataset: Dataset
    sources: list[tuple[Source, InputMap]]  # at least one; all look at the same frames of clips
    plan: Plan
    views: int
    top_k: int | None = None

    @property
    def source_plan(self) -> Plan:
        """What is drawn: as much of `plan` as the sources look at, all of them at the same."""
        return source_plan(self.sources[0][1], self.plan)

    @property
    def name(self) -> str:
        """The target and its split, for messages."""
        return f"{self.dataset.target}/{self.dataset.split}"
