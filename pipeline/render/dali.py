"""The DALI renderer: one graph for pictures in memory or JPEG/PNG files, on the CPU or a GPU.

Every random decision comes in as a tensor from the plan; the graph holds no random operator. File pictures
are decoded only inside their window where the plan allows it. On a GPU the hardware JPEG engine stays off,
because it and the CUDA decoder give different pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types
from torch.utils.dlpack import from_dlpack

from pipeline.plan import PadCropFlip, Plan
from pipeline.render import Positions
from pipeline.targets.index import TargetIndex

_AHEAD = 3  # batches whose files are read while the graph works on earlier ones
_Feed = tuple[
    list[NDArray[np.uint8]] | NDArray[np.uint8], NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]
]


class DaliRenderer:
    """See `pipeline.render.Renderer`. On a CUDA device the pixels are born there and stay there."""

    def __init__(
        self, index: TargetIndex, plan: Plan, *, device: torch.device, batch_size: int, threads: int
    ) -> None:
        self._index, self._plan, self._device = index, plan, device
        self.name = "dali-gpu" if device.type == "cuda" else "dali-cpu"
        self._pool = ThreadPoolExecutor(threads)
        self._feeds: Iterator[_Feed] = iter(())
        self._pipe = self._build(batch_size, threads)
        self._closed = False

    def render(self, view: int, batches: Iterable[Positions]) -> Generator[torch.Tensor, None, None]:
        """See `Renderer.render`. One render at a time; leaving it early is fine."""
        self._feeds = self._read_ahead(view, batches)
        try:
            while True:
                try:
                    (output,) = self._pipe.run()
                except StopIteration:
                    return
                # no copy: DALI's dynamic executor leaves a buffer to whoever holds it
                yield from_dlpack(output.as_tensor())
        finally:
            self._drain()

    def close(self) -> None:
        """See `Renderer.close`."""
        self._pool.shutdown(cancel_futures=True)
        self._closed = True

    def _read_ahead(self, view: int, batches: Iterable[Positions]) -> Iterator[_Feed]:
        """What the graph eats, with file reads running ahead of it."""
        pending: deque[Future[_Feed]] = deque()
        for positions in batches:
            pending.append(self._pool.submit(self._feed, view, positions))
            if len(pending) > _AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _feed(self, view: int, positions: Positions) -> _Feed:
        """Pictures or encoded files, window anchors (n, 2) and shapes (n, 2), and flips (n,) of one batch."""
        rows = self._plan.rows(view, self._index.ids[positions], self._index.sizes[positions])
        pictures: list[NDArray[np.uint8]] | NDArray[np.uint8]
        if self._index.kind == "array":
            pictures = self._index.pictures(positions)
        else:
            pictures = [np.frombuffer(self._index.encoded(int(p)), dtype=np.uint8) for p in positions]
        anchors, shapes = (np.ascontiguousarray(part) for part in np.split(rows.windows, 2, axis=1))
        return pictures, anchors, shapes, rows.flips.astype(np.int32)

    def _build(self, batch_size: int, threads: int) -> Pipeline:
        """The graph: decode, cut the window, resize, flip, planes first."""
        gpu = self._device.type == "cuda"
        files = self._index.kind == "files"
        side = self._plan.side_px
        resized = files or not isinstance(self._plan, PadCropFlip) or bool((self._index.sizes != side).any())
        pipe = Pipeline(
            batch_size,
            threads,
            device_id=self._device.index or 0 if gpu else None,
            prefetch_queue_depth=2,
            exec_dynamic=True,
        )
        with pipe:
            pictures, anchor, shape, flip = fn.external_source(
                source=lambda: next(self._feeds),
                num_outputs=4,
                batch=True,
                dtype=[types.UINT8, types.INT32, types.INT32, types.INT32],
                ndim=[1 if files else 3, 1, 1, 0],
            )
            window: dict[str, Any] = {"start": anchor, "shape": shape, "axes": [0, 1]}
            if files and not isinstance(self._plan, PadCropFlip):  # the window lies inside the picture
                pictures = fn.decoders.image_slice(pictures, **window, **_decoding(gpu))
            else:
                if files:
                    pictures = fn.decoders.image(pictures, **_decoding(gpu))
                elif gpu:
                    pictures = pictures.gpu()
                pictures = fn.slice(pictures, **window, out_of_bounds_policy="pad", fill_values=0)
            if resized:
                pictures = fn.resize(
                    pictures, size=[side, side], interp_type=types.INTERP_LINEAR, antialias=True
                )
            pictures = fn.flip(pictures, horizontal=flip, vertical=0)
            pipe.set_outputs(fn.transpose(pictures, perm=[2, 0, 1]))
        pipe.build()
        return pipe

    def _drain(self) -> None:
        """Leave the pipeline ready for the next view, also after an early exit or an error."""
        self._feeds = iter(())
        if self._closed:  # closed while a view was still being drawn
            return
        try:
            while True:
                self._pipe.run()
        except StopIteration:
            self._pipe.reset()


def _decoding(gpu: bool) -> dict[str, Any]:
    """Decoder settings that make the pixels those of libjpeg's and Pillow's defaults."""
    settings: dict[str, Any] = {
        "device": "mixed" if gpu else "cpu",
        "output_type": types.RGB,
        "adjust_orientation": False,
        "jpeg_fancy_upsampling": True,
    }
    return {**settings, "hw_decoder_load": 0.0} if gpu else settings
