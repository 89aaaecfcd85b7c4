"""The renderer of a plan with operations: another renderer's pixels, changed on the device where they are."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager

import torch

from pipeline.data.datasets import Dataset, Positions
from pipeline.data.plan import Augmented, RowOperations
from pipeline.data.render.operations import change_image
from pipeline.data.render.renderer import Renderer
from pipeline.runtime import InUse
from sskt.sources import one_thread_each


class AugmentedRenderer:
    """See `pipeline.data.render.Renderer`: what another renderer draws, changed by the plan's operations on
    the same device.
    """

    def __init__(
        self, dataset: Dataset, plan: Augmented, geometry: Renderer, *, device: torch.device, threads: int
    ) -> None:
        """`geometry` draws `plan.plan`."""
        self._dataset, self._plan, self._geometry, self._device = dataset, plan, geometry, device
        self.name = geometry.name
        self._pool = one_thread_each(threads, "augment")
        self._n_jobs = 4 * threads  # per batch: images differ in what they cost

    def render(self, view: int, batches: Sequence[Positions]) -> Generator[torch.Tensor, None, None]:
        """See `Renderer.render`."""
        in_use = InUse(self._device)
        with closing(self._geometry.render(view, batches)) as drawn:
            try:
                for positions, pixels in zip(batches, drawn, strict=True):
                    ids, sizes = self._dataset.ids[positions], self._dataset.sizes[positions]
                    operations = self._plan.rows(view, ids, sizes).operations
                    assert operations is not None  # noqa: S101 - such a plan has some
                    changed = self._changed(pixels, operations)
                    in_use.hold(pixels)
                    yield changed
            finally:
                in_use.release()

    @contextmanager
    def cache_decoded(self) -> Iterator[None]:
        """See `Renderer.cache_decoded`."""
        with self._geometry.cache_decoded():
            yield

    def close(self) -> None:
        """See `Renderer.close`."""
        self._geometry.close()

    def _changed(self, pixels: torch.Tensor, operations: RowOperations) -> torch.Tensor:
        """A changed copy of uint8 (n, 3, side, side), or of clips (n, 3, F, side, side), frame by frame."""
        frames = pixels.transpose(1, 2) if pixels.ndim == 5 else pixels[:, None]
        changed, rows = frames.clone(memory_format=torch.contiguous_format), operations.changed

        def change(some: Sequence[int]) -> None:
            for row in some:
                for image in changed[row]:
                    image.copy_(change_image(image, operations, row))

        if pixels.device.type == "cpu":
            for _ in self._pool.map(change, [rows[job :: self._n_jobs] for job in range(self._n_jobs)]):
                pass
        else:
            change(rows)
        return changed.transpose(1, 2) if pixels.ndim == 5 else changed[:, 0]
