"""Turn plan rows into pixels (docs/method.md, promise 2): uint8 (N, 3, side, side), RGB, in the order
requested; for videos clips of the planned frames, (N, 3, F, side, side).

Three renderers share one plan: `dali` (one graph for CPU and GPU), `torch` (everywhere) and `resident` (small
images in memory). Each gives the same bytes for the same rows whatever the order, batch size or thread
count; they differ from one another by at most about one grey level on average after a resize, and not at all
without one. What a plan does to pixels after crop and flip is done by one implementation, `operations`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from pipeline.data.datasets import Dataset, JoinedImages, Positions
from pipeline.data.plan import Augmented, ClipPlan, Plan
from pipeline.data.render.renderer import Renderer
from pipeline.runtime import CPU, Execution
from sskt.errors import RunError

__all__ = ["RENDERERS", "Renderer", "in_batches", "open_renderer"]

RENDERERS = ("auto", "dali", "dali-cpu", "torch", "resident")


def open_renderer(dataset: Dataset, plan: Plan, execution: Execution, *, batch_size: int) -> Renderer:
    """Open a renderer for batches of at most `batch_size`. `execution.renderer` auto takes the fastest that
    can draw them (benchmarks/loaders.py): resident for small images, DALI if installed, else torch.

    `execution.device` is where the pixels are needed: on CUDA, DALI decodes there, and as "dali-cpu" on the
    host, whose pixels a caller copies. Raises RunError if the renderer named is not installed, or cannot draw
    these images.
    """
    backend, device, threads = execution.renderer, execution.device, execution.threads
    if backend not in RENDERERS:
        raise RunError(f"renderer is {backend!r}, expected one of {', '.join(RENDERERS)}")
    if isinstance(dataset.access, JoinedImages):
        from pipeline.data.render.joined import JoinedRenderer

        def open_part(part: Dataset) -> Renderer:
            return open_renderer(part, plan, execution, batch_size=batch_size)

        return JoinedRenderer(dataset.access, open_part, device)
    if isinstance(plan, Augmented):
        from pipeline.data.render.augmented import AugmentedRenderer

        geometry = open_renderer(dataset, plan.plan, execution, batch_size=batch_size)
        return AugmentedRenderer(dataset, plan, geometry, device=device, threads=threads)
    if dataset.kind == "video":
        from pipeline.data.render.clips import ClipRenderer

        if not isinstance(plan, ClipPlan):
            raise RunError(f"{dataset.target} holds videos, {type(plan).__name__} is a plan for pictures")
        n_frames = plan.n_frames

        def open_for_frames(frames: Dataset, frame_plan: Plan) -> Renderer:
            return open_renderer(frames, frame_plan, execution, batch_size=batch_size * n_frames)

        return ClipRenderer(dataset, plan, open_for_frames)
    from pipeline.data.render.resident import ResidentRenderer, can_be_resident

    if backend in ("auto", "resident"):
        if can_be_resident(dataset, plan, device):
            return ResidentRenderer(dataset, plan, device=device)
        if backend == "resident":
            raise RunError(
                f"--renderer resident draws pictures that lie in memory and keep their size, and "
                f"{dataset.target} has others; use --renderer auto"
            )
    installed = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali")
    if backend in ("dali", "dali-cpu") and not installed:
        raise RunError(
            "DALI is not installed here; install nvidia-dali-cuda130 (Linux), or use --renderer torch"
        )
    if backend == "torch" or not installed:
        from pipeline.data.render.torch import TorchRenderer

        return TorchRenderer(dataset, plan, threads=threads)
    from pipeline.data.render.dali import DaliRenderer

    if backend == "dali-cpu":
        device = CPU
    return DaliRenderer(dataset, plan, device=device, batch_size=batch_size, threads=threads)


def in_batches(positions: Positions, batch_size: int) -> Sequence[Positions]:
    """Consecutive batches of at most `batch_size` positions; the last may be smaller."""
    return [positions[start : start + batch_size] for start in range(0, len(positions), batch_size)]
