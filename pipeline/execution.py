"""How work is run, apart from what it computes; never part of a fingerprint."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.plan import Plan
from pipeline.render import Renderer, open_renderer
from pipeline.targets.index import TargetIndex


@dataclass(frozen=True, slots=True)
class Execution:
    """Device, threads and the like. Stage one records precision and renderer with its store all the same."""

    device: torch.device
    compute: str = "fp32"  # precision of the frozen networks: fp32, bf16 or fp16
    renderer: str = "auto"
    threads: int = 2
    batch_size: int = 64  # stage one: pictures rendered at a time

    def open_renderer(self, index: TargetIndex, plan: Plan, *, batch_size: int) -> Renderer:
        """A renderer for batches of at most `batch_size`; see `pipeline.render.open_renderer`."""
        return open_renderer(
            index,
            plan,
            backend=self.renderer,
            device=self.device,
            batch_size=batch_size,
            threads=self.threads,
        )
