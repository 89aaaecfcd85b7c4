"""Clips: each clip's frames are drawn as images through one window, by an image renderer."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import torch

from pipeline.data.datasets import Dataset, Positions, first_frames, frames_dataset
from pipeline.data.plan import ClipPlan, Ids, Plan, PlanRows, Sizes
from pipeline.data.render.renderer import Renderer


class ClipRenderer:
    """See `pipeline.data.render.Renderer`: uint8 (n, 3, F, side, side), the planned frames of n videos."""

    def __init__(
        self, dataset: Dataset, plan: ClipPlan, open_images: Callable[[Dataset, Plan], Renderer]
    ) -> None:
        """`open_images` opens a renderer for a dataset of images."""
        self._dataset, self._plan = dataset, plan
        self._firsts = first_frames(dataset)
        self._images = open_images(frames_dataset(dataset), _FramePlan(dataset, plan, self._firsts))
        self.name = self._images.name

    def render(self, view: int, batches: Sequence[Positions]) -> Generator[torch.Tensor, None, None]:
        """See `Renderer.render`."""
        clips = [self._frames(view, positions) for positions in batches]
        with closing(self._images.render(view, [frames.ravel() for frames in clips])) as drawn:
            for frames, images in zip(clips, drawn, strict=True):
                yield images.view(*frames.shape, *images.shape[1:]).transpose(1, 2)

    @contextmanager
    def cache_decoded(self) -> Iterator[None]:
        """See `Renderer.cache_decoded`. Caches nothing, since views seldom share a frame."""
        yield

    def close(self) -> None:
        """See `Renderer.close`."""
        self._images.close()

    def _frames(self, view: int, positions: Positions) -> Positions:
        """Positions in `frames_dataset` of each clip's frames: int64 (n, F)."""
        rows = self._plan.rows(view, self._dataset.ids[positions], self._dataset.sizes[positions])
        assert rows.frames is not None  # noqa: S101 - plans of clips have frames
        return self._firsts[positions][:, None] + rows.frames


class _FramePlan:
    """A clip plan as a plan for single frames, whose ids are positions in `frames_dataset`. See `Plan`."""

    def __init__(self, dataset: Dataset, plan: ClipPlan, firsts: Positions) -> None:
        self._dataset, self._plan, self._firsts = dataset, plan, firsts

    @property
    def side_px(self) -> int:
        return self._plan.side_px

    def rows(self, view: int, ids: Ids, sizes: Sizes) -> PlanRows:  # noqa: ARG002
        videos = np.searchsorted(self._firsts, ids, side="right") - 1
        distinct, row_of = np.unique(videos, return_inverse=True)
        rows = self._plan.rows(view, self._dataset.ids[distinct], self._dataset.sizes[distinct])
        windows = rows.windows[row_of]
        if windows.ndim == 3:
            assert rows.frames is not None  # noqa: S101 - plans of clips have frames
            shown = rows.frames[row_of] == (ids - self._firsts[videos])[:, None]
            windows = windows[shown]
        return PlanRows(ids, windows, rows.flips[row_of])

    def to_dict(self) -> dict[str, Any]:
        return self._plan.to_dict()
