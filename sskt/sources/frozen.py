"""A frozen source at work: the input map f_s (SSKT eq. 6), and logits as a pure function of one picture.

A row's last bits depend on how many rows and how many CPU threads compute it, since kernels are chosen by
both. So every forward has exactly the same number of rows, and on a CPU exactly one thread: several
forwards run side by side instead, which costs no speed. A row then gives the same bits whatever the batch
it came in, its place, its neighbours and the number of threads.

Departs from the released code: sources are in eval mode (there: train mode, batch statistics).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sskt.errors import SourceError
from sskt.sanity import insane_rows, worst_value
from sskt.sources.contract import as_logits
from sskt.sources.exported_program import program_to_device
from sskt.sources.forward import (
    COMPUTE,
    DTYPES,
    Forward,
    compiled,
    compiler_errors,
    default_compute,
    default_rows,
    exact_kernels,
    one_thread_each,
)
from sskt.sources.input_map import InputMap
from sskt.sources.plain import MOST_SHOWN, plain_answers, require_agreement
from sskt.sources.purity import require_same_bits
from sskt.sources.source import Source


class NonFiniteLogitsError(SourceError):
    """Some rows came out as NaN or infinite, or beyond any sound network's; `rows` are their positions in the
    call.
    """

    def __init__(self, message: str, rows: list[int]) -> None:
        super().__init__(message)
        self.rows = rows


class FrozenSource:
    """One source network on one device, asked for logits; it takes over the source's module.

    The last group of a call is filled up to `forward.rows` with copies of its first row. `threads` is how
    many forwards a CPU runs at once (left out: torch's number). `picture_px` is the side of the pictures that
    will come (left out: `input_map.side_px`); code is compiled for that size. On `shown`, a few real pictures
    as `logits` takes them, its answers are held against plain fp32. Raises SourceError when the network
    cannot read pictures of `input_map.side_px`, or cannot be compiled; DisagreementError if answers differ.
    """

    def __init__(
        self,
        source: Source,
        input_map: InputMap,
        *,
        device: torch.device,
        forward: Forward | None = None,
        image_px: int | None = None,
        threads: int | None = None,
        shown: Tensor | None = None,
    ) -> None:
        forward = forward or Forward(default_compute(device), source.nearest_rows(default_rows(device)))
        if forward.compute not in COMPUTE:
            raise SourceError(
                f"compute precision is {forward.compute!r}, expected one of {', '.join(COMPUTE)}"
            )
        on_cpu = device.type == "cpu"
        if forward.compute == "fp16" and on_cpu:
            raise SourceError(
                f"{source.spec.name}: fp16 on a CPU is slower than fp32; use bf16 or fp32 there"
            )
        self.source = source
        self.input_map = input_map
        self.device = device
        self.forward = forward
        self._pool = one_thread_each(threads or torch.get_num_threads(), "frozen-source") if on_cpu else None
        self._image_px = image_px or input_map.side_px
        self._shown = shown
        self._network = self._require_readable()
        self._shown = None

    def logits(self, pixels: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) on any device to float16 (N, K) on the source's device, without gradient.

        Of clips, (N, 3, F, H, W), the frames that `input_map.picked` takes of them. Raises
        NonFiniteLogitsError, a SourceError, with the positions of the rows concerned.
        """
        out = self.begin(pixels)()
        self.require_finite(out)
        return out

    def begin(self, pixels: Tensor) -> Callable[[], Tensor]:
        """Start on `pixels`; returns what waits for their logits, (N, K) float16, not checked to be finite.

        On a CPU the workers go on while the caller prepares the next batch; on CUDA the kernels are queued,
        and the tensor is there as soon as it is used.
        """
        if not len(pixels):
            nothing = torch.empty(0, self.source.spec.n_classes, dtype=torch.float16, device=self.device)
            return lambda: nothing
        rows = self.forward.rows
        frames = self.input_map.frames
        images = pixels if frames is None else frames.images(pixels)
        groups = [images[start : start + rows] for start in range(0, len(images), rows)]
        if self._pool is None:
            done = self._answers([self._group(group) for group in groups])
            return self._when_computed(done, pixels)
        started = [self._pool.submit(self._group, group) for group in groups]
        # outside inference mode, so that the result may enter the graph of the student's loss
        return lambda: self._answers([future.result() for future in started])

    def outputs(self, pixels: Tensor) -> Tensor:
        """What the network itself returns for `pixels`, as for `logits`: float32 (N, K) on the CPU, before it
        is turned into logits; of several frames a clip, a row for each.
        """
        frames = self.input_map.frames
        images = pixels if frames is None else frames.images(pixels)
        groups = [images[at : at + self.forward.rows] for at in range(0, len(images), self.forward.rows)]
        run = map if self._pool is None else self._pool.map
        return torch.cat([rows.float().cpu() for rows in run(self._returned, groups)])

    def black(self, n: int) -> Tensor:
        """As many black pictures, or frames of so many clips, uint8, as they will be drawn."""
        frames = self.input_map.frames
        n_frames = () if frames is None else (len(frames.picks),)
        side = self._image_px
        return torch.zeros(n, 3, *n_frames, side, side, dtype=torch.uint8, device=self.device)

    def _answers(self, groups: list[Tensor]) -> Tensor:
        """All rows of a call, float16."""
        frames = self.input_map.frames
        rows = torch.cat(groups)
        return (rows if frames is None else frames.answer(rows)).to(torch.float16)

    def _when_computed(self, done: Tensor, pixels: Tensor) -> Callable[[], Tensor]:
        """Hold on to the pixels until the device has read them: their memory may be used again after."""
        event: Any = torch.cuda.Event  # not typed by torch
        computed = event() if self.device.type == "cuda" else None
        if computed is not None:
            computed.record()

        def wait(_held: Tensor = pixels) -> Tensor:
            if computed is not None:
                computed.synchronize()
            return done

        return wait

    def require_finite(self, logits: Tensor) -> None:
        """Raise NonFiniteLogitsError, with the positions, if any row of (N, K) logits is not finite or beyond
        what the source, if sound, could give.
        """
        largest = self.source.largest_logit
        bad = insane_rows(logits, largest)
        if bad:
            fast = self.forward.compute != "fp32"
            raise NonFiniteLogitsError(
                f"{self.source.spec.name} gave NaN, infinite or over {largest:g} logits for "
                f"{len(bad)} of {len(logits)} rows, {worst_value(logits[bad[0]]):.4g} first; check its "
                f"weights ({self.source.weights_path}){', or compute it with --amp fp32' if fast else ''}",
                bad,
            )

    def _group(self, pixels: Tensor) -> Tensor:
        """Float32 logits of at most `rows` pictures."""
        return as_logits(self._returned(pixels), self.source.spec.returns)

    def _returned(self, pixels: Tensor) -> Tensor:
        """What the network returns for at most `rows` pictures, computed as exactly `rows`."""
        n, rows = len(pixels), self.forward.rows
        pixels = pixels.to(self.device)
        if n < rows:
            pixels = torch.cat([pixels, pixels[:1].expand(rows - n, *pixels.shape[1:])])
        return self._in_modes(self._network, pixels)[:n]

    def _in_modes(self, network: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
        """Raw logits of all rows; modes are entered here because each belongs to one thread."""
        dtype = DTYPES[self.forward.compute]
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32),
            exact_kernels(self.device),
        ):
            return network(pixels)

    def _eager(self) -> Callable[[Tensor], Tensor]:
        """Normalised and resized pixels through the network, in the memory layout that it runs fastest in."""
        # a program's kernels were traced for its own layout; elsewhere channels last is up to 1.6 x faster
        if self.source.is_traced:
            layout, module = torch.contiguous_format, program_to_device(self.source.module, self.device)
        else:
            layout = torch.channels_last_3d if self.source.spec.reads_clips else torch.channels_last
            module = self.source.module.to(self.device).to(memory_format=layout)
        input_map = self.input_map

        def network(pixels: Tensor) -> Tensor:
            z: Tensor = module(input_map(pixels).contiguous(memory_format=layout))
            return z

        return network

    def _require_readable(self) -> Callable[[Tensor], Tensor]:
        """The function to call, tried out: fail here, in words, and not in the first batch."""
        name, side, forward = self.source.spec.name, self.input_map.side_px, self.forward
        if self.source.side_range_px is not None:
            low, high = self.source.side_range_px
            if not low <= side <= high:
                sizes = f"{low} px" if low == high else f"{low} to {high} px"
                raise SourceError(
                    f"{name} reads pictures of {sizes}, this target gives it {side} px; "
                    f"pass --source-size {min(max(side, low), high)}, or export the program for {side} px"
                )
        self.source.require_rows(forward.rows)
        # a program's guards may want more of a batch's size, and a GPU may lack memory for all rows at once
        whole = self.source.is_traced or self.device.type == "cuda"
        n = forward.rows if whole or (forward.compute != "fp32" and self._shown is not None) else 1
        try:
            plain = self._plain_answers()
            network = self._eager()
            z = self._try(network, self._images(n))
        except torch.OutOfMemoryError as error:
            raise SourceError(
                f"{name}: {n} pictures of {side} px in {forward.compute} do not fit in the memory of "
                f"{self.device}; pass --batch-size with fewer than {n}"
            ) from error
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise SourceError(
                f"{name} cannot read {n} pictures of {side} px in {forward.compute} ({reason}); "
                f"pass a --source-size and --batch-size that it takes, or choose another source"
            ) from error
        wanted = (n, self.source.spec.n_classes)
        if not isinstance(z, Tensor) or tuple(z.shape) != wanted:
            found = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise SourceError(
                f"{name} returns {found}, expected logits of shape {wanted}; export the logits alone"
            )
        if self.source.is_traced:
            few = self.source.nearest_rows(2)
            require_same_bits(partial(self._try, network), self._images(few), name)
        if forward.compiled:
            network = compiled(network)
            with compiler_errors(name):
                z = self._try(network, self._images(forward.rows))
        if plain is not None:
            require_agreement(name, forward, z, plain)
        return network

    def _try(self, network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """A forward where the others will run: code is compiled for a number of threads."""
        if self._pool is None:
            return self._in_modes(network, images)
        return self._pool.submit(self._in_modes, network, images).result()

    def _images(self, n: int) -> Tensor:
        """The first `n` pictures to try it on: what is shown over and over, or black ones."""
        shown, frames = (
            self.black(n) if self._shown is None else self._shown.to(self.device),
            self.input_map.frames,
        )
        images = shown if frames is None else frames.images(shown)
        return images.repeat(-(-n // len(images)), *(1 for _ in images.shape[1:]))[:n]

    def _plain_answers(self) -> Tensor | None:
        """See `sskt.sources.plain`. None where nothing is shown, or that is how the source runs anyway."""
        source, n = self.source, min(MOST_SHOWN, self.forward.rows)
        if self._shown is None or (source.is_traced and self.forward == Forward("fp32", self.forward.rows)):
            return None
        if source.is_traced:  # it may be tied to a number of rows, and its memory is laid out by its kernels
            module, n = program_to_device(source.module, self.device), self.forward.rows
        else:
            module = source.module.to(self.device)
        return plain_answers(module, self.input_map(self._images(n)), keeps_layout=source.is_traced)
