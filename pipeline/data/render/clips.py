"""Clips: the frames of each are drawn as pictures through one window, by the renderer for pictures."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.datasets.dataset import Dataset
from pipeline.data.datasets.video.dataset import first_frames, frames_dataset
from pipeline.data.plan import ClipPlan, Plan, PlanRows
from pipeline.data.render.renderer import Positions, Renderer


class ClipRenderer:
    """See `pipeline.data.render.Renderer`: uint8 (n, 3, F, side, side), the planned frames of n videos."""

    def __init__(
        self, dataset: Dataset, plan: ClipPlan, open_images: Callable[[Dataset, Plan], Renderer]
    ) -> None:
        """`open_pictures` opens a renderer for an index of pictures."""
        self._dataset, self._plan = dataset, plan
        self._firsts = first_frames(dataset)
        self._images = open_images(frames_dataset(dataset), _OfFrames(dataset, plan, self._firsts))
        self.name = self._images.name

    def render(self, view: int, batches: Sequence[Positions]) -> Generator[torch.Tensor, None, None]:
        """See `Renderer.render`."""
        frames = [self._frames(view, positions) for positions in batches]
        with closing(self._images.render(view, [each.ravel() for each in frames])) as drawn:
            for each, images in zip(frames, drawn, strict=True):
                yield images.view(*each.shape, *images.shape[1:]).transpose(1, 2)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """See `Renderer.keeping`. Views seldom share a frame: nothing is kept."""
        yield

    def close(self) -> None:
        """See `Renderer.close`."""
        self._images.close()

    def _frames(self, view: int, positions: Positions) -> NDArray[np.int64]:
        """The pictures of `frames_index` that make up each clip: int64 (n, F)."""
        rows = self._plan.rows(view, self._dataset.ids[positions], self._dataset.sizes[positions])
        assert rows.frames is not None  # noqa: S101 - plans of clips have frames
        return self._firsts[positions][:, None] + rows.frames


class _OfFrames:
    """A plan of clips as a plan of their frames, whose ids are rows of `frames_index`. See `Plan`."""

    def __init__(self, dataset: Dataset, plan: ClipPlan, firsts: NDArray[np.int64]) -> None:
        self._dataset, self._plan, self._firsts = dataset, plan, firsts

    @property
    def side_px(self) -> int:
        return self._plan.side_px

    def rows(self, view: int, ids: NDArray[np.int64], sizes: NDArray[np.int32]) -> PlanRows:  # noqa: ARG002
        videos = np.searchsorted(self._firsts, ids, side="right") - 1
        once, where = np.unique(videos, return_inverse=True)
        rows = self._plan.rows(view, self._dataset.ids[once], self._dataset.sizes[once])
        return PlanRows(ids, rows.windows[where], rows.flips[where])

    def to_dict(self) -> dict[str, Any]:
        return self._plan.to_dict()
