"""A joined dataset: each part's images are drawn by a renderer of its own, with the part's own ids, so they
are the pixels that stage one showed the sources.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

import torch

from pipeline.data.datasets import Dataset, JoinedImages, Placed, Positions
from pipeline.data.render.renderer import Renderer
from pipeline.runtime import InUse, to_device


class JoinedRenderer:
    """See `pipeline.data.render.Renderer`."""

    def __init__(
        self, images: JoinedImages, open_part: Callable[[Dataset], Renderer], device: torch.device
    ) -> None:
        """`open_part` opens the renderer of a part."""
        self._images, self._device = images, device
        self._renderers = [open_part(part) for part in images.parts]
        self.name = "+".join(dict.fromkeys(renderer.name for renderer in self._renderers))

    def render(self, view: int, batches: Sequence[Positions]) -> Generator[torch.Tensor, None, None]:
        """See `Renderer.render`."""
        placed = [self._images.place(positions) for positions in batches]
        in_use = InUse(self._device)
        with ExitStack() as stack:
            drawn: dict[int, Iterator[torch.Tensor]] = {}
            for part, renderer in enumerate(self._renderers):
                rows = [each.rows for batch in placed for each in batch if each.part == part]
                drawn[part] = stack.enter_context(closing(renderer.render(view, rows)))
            try:
                for batch in placed:
                    parts = [(each, next(drawn[each.part])) for each in batch]
                    yield _merged(parts, in_use, self._device)
            finally:
                in_use.release()

    @contextmanager
    def cache_decoded(self) -> Iterator[None]:
        """See `Renderer.cache_decoded`."""
        with ExitStack() as stack:
            for renderer in self._renderers:
                stack.enter_context(renderer.cache_decoded())
            yield

    def close(self) -> None:
        """See `Renderer.close`."""
        for renderer in self._renderers:
            renderer.close()


def _merged(parts: list[tuple[Placed, torch.Tensor]], in_use: InUse, device: torch.device) -> torch.Tensor:
    """One batch, of what each part has drawn of it; some parts may be drawn on the host."""
    if len(parts) == 1:
        return parts[0][1]
    n, first = sum(len(pixels) for _, pixels in parts), parts[0][1]
    batch = first.new_empty((n, *first.shape[1:]), device=device)
    for placed, pixels in parts:
        batch[to_device(placed.which, device)] = to_device(pixels, device)
        in_use.hold(pixels)
    return batch
