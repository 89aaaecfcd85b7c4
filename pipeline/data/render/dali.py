"""The DALI renderer: one graph for images in memory or JPEG/PNG files, on the CPU or a GPU.

Every random decision enters as a tensor from the plan; the graph has no random operator. On a CPU, files are
decoded only inside their window where the plan allows it, which gives the same bytes as cropping the whole
image (tests/test_pipeline_render.py); the graph ends with the windows, and torch resizes them. On a GPU files
are decoded whole, because nvImageCodec 0.9.0 fails on windows there (its issue 55; a segmentation fault on an
H100), and without the hardware JPEG engine, whose pixels differ from the CUDA decoder's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types
from torch.utils.dlpack import from_dlpack

from pipeline.data.datasets import Dataset, Positions
from pipeline.data.plan import PadCropFlip, Plan
from pipeline.data.render.torch import fit_windows
from sskt.errors import RunError
from sskt.sources import one_thread_each

# what enters the graph: encoded files, of which a CPU decodes only the window; files whose whole images are
# output as well; images in memory
_Entry = Literal["files", "keep", "pixels"]
_MAX_RUN = 16  # windows of one size that are resized in one call
_PREFETCHED = 2  # batches that the graph works on while one is used
_AHEAD = 3  # batches whose files are read while the graph works on earlier ones
_Feed = tuple[
    list[NDArray[np.uint8]] | NDArray[np.uint8], NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]
]


class DaliRenderer:
    """See `pipeline.data.render.Renderer`. On CUDA the pixels are created on the device and stay there."""

    def __init__(
        self, dataset: Dataset, plan: Plan, *, device: torch.device, batch_size: int, threads: int
    ) -> None:
        self._dataset, self._plan, self._device = dataset, plan, device
        self.name = "dali-gpu" if device.type == "cuda" else "dali-cpu"
        self._batch_size, self._threads = batch_size, threads
        self._pool = ThreadPoolExecutor(threads)
        self._feeds: Iterator[_Feed] = iter(())
        self._pipes: dict[_Entry, Pipeline] = {}  # built at first use
        self._decoded: dict[int, NDArray[np.uint8]] | None = None  # position -> whole image
        self._closed = False
        self._has_its_size = isinstance(plan, PadCropFlip) and not (dataset.sizes != plan.side_px).any()
        # on a CPU, DALI's resize takes three times as long as torch's, and twice as long as its decoding
        self._fits_on_host = device.type == "cpu" and not self._has_its_size
        self._resizers = one_thread_each(threads, "resize")
        self._flips: deque[NDArray[np.int32]] = deque()  # one array per batch in the graph

    def render(self, view: int, batches: Sequence[Positions]) -> Generator[torch.Tensor, None, None]:
        """See `Renderer.render`. One render at a time; leaving it early is fine."""
        entry = self._entry(batches)
        pipe = self._pipes.get(entry) or self._pipes.setdefault(entry, self._build(entry))
        self._feeds = self._read_ahead(view, batches, entry)
        try:
            for n, positions in enumerate(batches):
                output = self._run(pipe, batches[n : n + 1 + _PREFETCHED])
                if entry == "keep":
                    self._keep(positions, output[1])
                if self._fits_on_host:
                    yield self._fitted(output[0])
                else:  # no copy: DALI's dynamic executor does not reuse a buffer that is held
                    yield from_dlpack(output[0].as_tensor())
        finally:
            self._drain(entry)

    def _run(self, pipe: Pipeline, fed: Sequence[Positions]) -> Any:
        """The next batch out of the graph, which holds only the images `fed`. DALI fails on a damaged file
        without naming it: decoding each again raises the TargetError that does. Raises RunError if a GPU
        fails on sound images.
        """
        try:
            return pipe.run()
        except RuntimeError as error:
            self._pipes.clear()  # a failed graph cannot continue
            for position in np.concatenate(fed):
                self._dataset.pixels_of(int(position))
            if self._device.type == "cpu":
                raise  # the images were not the cause
            raise RunError(
                f"{self._dataset.target}: DALI failed on {self._device} on images that the CPU decodes "
                f"({str(error).strip().splitlines()[0]}); use --renderer dali-cpu"
            ) from error

    @contextmanager
    def cache_decoded(self) -> Iterator[None]:
        """See `Renderer.cache_decoded`. On CUDA nothing is kept, since whole images are copied to the host
        in more time than they are decoded in.
        """
        self._decoded = {} if self._device.type == "cpu" else None
        try:
            yield
        finally:
            self._decoded = None

    def close(self) -> None:
        """See `Renderer.close`."""
        self._pool.shutdown(cancel_futures=True)
        self._pipes.clear()  # a graph references this renderer: a cycle that would keep its memory
        self._closed = True

    def _entry(self, batches: Sequence[Positions]) -> _Entry:
        """How images enter the graph; within `cache_decoded` no file is decoded twice."""
        if self._dataset.kind == "array":
            return "pixels"
        if self._decoded is None:
            return "files"
        return "pixels" if all(int(p) in self._decoded for batch in batches for p in batch) else "keep"

    def _fitted(self, windows: Any) -> torch.Tensor:
        """The next batch's windows, resized and flipped on the host: uint8 (n, 3, side, side)."""
        side, flips = self._plan.side_px, self._flips.popleft()
        drawn = np.empty((len(flips), 3, side, side), dtype=np.uint8)  # filled by threads
        cut = [np.asarray(windows.at(i)) for i in range(len(flips))]

        def fit(run: slice) -> None:
            batch = np.stack(cut[run]) if run.stop - run.start > 1 else cut[run.start][None]
            drawn[run] = fit_windows(batch, side, bool(flips[run.start])).numpy()

        runs = _runs([(*window.shape, flip) for window, flip in zip(cut, flips, strict=True)])
        for _ in self._resizers.map(fit, runs):
            pass
        return torch.from_numpy(drawn)

    def _keep(self, positions: Positions, decoded: Any) -> None:
        """Keep a batch's whole images in host memory."""
        assert self._decoded is not None  # noqa: S101 - "keep" is no entry otherwise
        for i, position in enumerate(positions):
            self._decoded[int(position)] = np.array(decoded.at(i))

    def _read_ahead(self, view: int, batches: Sequence[Positions], entry: _Entry) -> Iterator[_Feed]:
        """The graph's inputs, with file reads running ahead of it."""
        pending: deque[Future[_Feed]] = deque()
        for positions in batches:
            pending.append(self._pool.submit(self._feed, view, positions, entry))
            if len(pending) > _AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _next_feed(self) -> _Feed | tuple[Any, ...]:
        """The graph's inputs for a batch; flips that the host applies wait until the batch comes out."""
        feed = next(self._feeds)
        if not self._fits_on_host:
            return feed
        self._flips.append(feed[3])
        return feed[:3]

    def _feed(self, view: int, positions: Positions, entry: _Entry) -> _Feed:
        """One batch's images or encoded files, window anchors (n, 2) and shapes (n, 2), and flips (n,)."""
        rows = self._plan.rows(view, self._dataset.ids[positions], self._dataset.sizes[positions])
        images: list[NDArray[np.uint8]] | NDArray[np.uint8]
        if entry != "pixels":
            images = [np.frombuffer(self._dataset.encoded(int(p)), dtype=np.uint8) for p in positions]
        elif self._decoded is not None:
            images = [self._decoded[int(p)] for p in positions]
        else:
            images = self._dataset.images(positions)
        anchors, shapes = (np.ascontiguousarray(part) for part in np.split(rows.windows, 2, axis=1))
        return images, anchors, shapes, rows.flips.astype(np.int32)

    def _build(self, entry: _Entry) -> Pipeline:
        """The graph: decode, crop, resize, flip, to channels first; "keep" outputs whole images too."""
        gpu = self._device.type == "cuda"
        pipe = Pipeline(
            self._batch_size,
            self._threads,
            device_id=self._device.index or 0 if gpu else None,
            prefetch_queue_depth=_PREFETCHED,
            exec_dynamic=True,
        )
        with pipe:
            n_fed = 3 if self._fits_on_host else 4
            images, anchor, shape, *flip = fn.external_source(
                source=self._next_feed,
                num_outputs=n_fed,
                batch=True,
                dtype=[types.UINT8, types.INT32, types.INT32, types.INT32][:n_fed],
                ndim=[3 if entry == "pixels" else 1, 1, 1, 0][:n_fed],
            )
            window: dict[str, Any] = {"start": anchor, "shape": shape, "axes": [0, 1]}
            inside = not isinstance(self._plan, PadCropFlip)  # windows lie inside the image
            if entry == "files" and inside and not gpu:
                cut = fn.decoders.image_slice(images, **window, **_decoding(gpu))
            else:
                if entry != "pixels":
                    images = fn.decoders.image(images, **_decoding(gpu))
                elif gpu:
                    images = images.gpu()
                cut = fn.slice(images, **window, out_of_bounds_policy="pad", fill_values=0)
            if self._fits_on_host:
                drawn = cut
            else:
                drawn = fn.transpose(
                    fn.flip(self._resized(cut), horizontal=flip[0], vertical=0),
                    perm=[2, 0, 1],
                )
            pipe.set_outputs(*((drawn, images) if entry == "keep" else (drawn,)))
        pipe.build()
        return pipe

    def _resized(self, cut: Any) -> Any:
        """The window at the plan's size; unchanged if it has that size already."""
        side = self._plan.side_px
        if self._has_its_size:
            return cut
        return fn.resize(cut, size=[side, side], interp_type=types.INTERP_LINEAR, antialias=True)

    def _drain(self, entry: _Entry) -> None:
        """Make a pipeline ready for the next view, even after an early exit or an error."""
        self._feeds = iter(())
        self._flips.clear()
        pipe = self._pipes.get(entry)
        if self._closed or pipe is None:  # closed in the middle of a view, or failed
            return
        try:
            while True:
                pipe.run()
        except StopIteration:
            pipe.reset()


def _runs(kinds: list[tuple[int, ...]]) -> list[slice]:
    """Runs of equal neighbours, such as a clip's frames, of at most `_MAX_RUN` each."""
    runs: list[slice] = []
    for i, kind in enumerate(kinds):
        if runs and kinds[runs[-1].start] == kind and i - runs[-1].start < _MAX_RUN:
            runs[-1] = slice(runs[-1].start, i + 1)
        else:
            runs.append(slice(i, i + 1))
    return runs


def _decoding(gpu: bool) -> dict[str, Any]:
    """Decoder settings that give the pixels of libjpeg's and Pillow's defaults."""
    settings: dict[str, Any] = {
        "device": "mixed" if gpu else "cpu",
        "output_type": types.RGB,
        "adjust_orientation": False,
        "jpeg_fancy_upsampling": True,
    }
    return {**settings, "hw_decoder_load": 0.0} if gpu else settings
