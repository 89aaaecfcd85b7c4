"""Run a frozen source: the input map f_s (SSKT eq. 6), then logits as a pure function of one image; or the
embedding or maps that are asked of it, which take the same way; or several outputs side by side in one row.

A row's last bits depend on the batch size and the number of CPU threads, since kernels are chosen by both. So
every forward has exactly the same batch size, and on a CPU exactly one thread: several forwards run side by
side instead, which costs no speed. An image then gives the same bits whatever batch it came in, its position,
its neighbours and the number of threads.

Departs from the released code: sources are in eval mode (released: train mode, batch statistics).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sskt.errors import SourceError
from sskt.sanity import insane_rows, worst_value
from sskt.sources.contract import as_logits
from sskt.sources.forward import (
    COMPUTE,
    DTYPES,
    Forward,
    compile_network,
    compiler_errors,
    default_batch_size,
    default_compute,
    exact_kernels,
    one_thread_each,
    program_to_device,
)
from sskt.sources.input_map import InputMap
from sskt.sources.plain import MAX_SHOWN, plain_answers, require_agreement
from sskt.sources.purity import require_same_bits
from sskt.sources.source import Source
from sskt.students import input_layout, to_channels_last


class NonFiniteLogitsError(SourceError):
    """Some logits are NaN, infinite or larger than any sound network's; `rows` are their row numbers in the
    call.
    """

    def __init__(self, message: str, rows: list[int]) -> None:
        super().__init__(message)
        self.rows = rows


@dataclass(frozen=True, slots=True, eq=False)
class _PendingLogits:
    """Logits that a device may still be computing; calling this waits for them."""

    logits: Tensor
    pixels: Tensor  # held because the device may still read them, and their memory could be reused
    computed: Any  # torch.cuda.Event, None on other devices

    def __call__(self) -> Tensor:
        """Wait, then return the logits."""
        if self.computed is not None:
            self.computed.synchronize()
        return self.logits


class FrozenSource:
    """One source network on one device, which computes logits; it takes ownership of the source's module.

    The last group of a call is padded to `forward.batch_size` with copies of its first image. `threads` is
    the number of forwards that a CPU runs at once (default: torch's number). `image_px` is the side of the
    images to come (default: `input_map.side_px`); code is compiled for that size. On `shown`, a few real
    images as `logits` takes them, the logits are compared with plain fp32. Raises SourceError if the network
    lacks the output that its spec names, cannot read images of `input_map.side_px`, or cannot be compiled;
    DisagreementError if the logits differ.
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
        if forward is None:
            batch_size = source.nearest_batch_size(default_batch_size(device))
            forward = Forward(default_compute(device), batch_size)
        if forward.compute not in COMPUTE:
            raise SourceError(
                f"compute precision is {forward.compute!r}, expected one of {', '.join(COMPUTE)}"
            )
        if source.spec.output not in source.outputs:
            raise SourceError(
                f"{source.spec.name} has no output {source.spec.output!r}, expected one of "
                f"{', '.join(source.outputs)}"
            )
        on_cpu = device.type == "cpu"
        if forward.compute == "fp16" and on_cpu:
            raise SourceError(
                f"{source.spec.name}: fp16 on a CPU is slower than fp32; use bf16 or fp32 there"
            )
        if source.runs_itself:  # autocast and the compiler do not reach it
            forward = Forward("fp32", forward.batch_size)
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
        """Map uint8 (N, 3, H, W) on any device to float16 (N, K) on the source's device, without gradient.

        Clips are (N, 3, F, H, W), with the frames that `input_map.pick` takes. Raises NonFiniteLogitsError, a
        SourceError, with the row numbers of the images concerned.
        """
        logits = self.submit(pixels)()
        self.require_finite(logits)
        return logits

    def submit(self, pixels: Tensor, *, in_order: bool = False) -> Callable[[], Tensor]:
        """Start on `pixels`; the function returned waits for their logits, (N, K) float16, which are not
        checked to be finite.

        On a CPU the workers run while the caller prepares the next batch; on CUDA the kernels are queued.
        `in_order` says that all that the caller does with the logits is queued behind them, and that the
        caller holds `pixels`: then nobody waits for a CUDA device.
        """
        if not len(pixels):
            empty = torch.empty(0, self.source.spec.n_classes, dtype=torch.float16, device=self.device)
            return lambda: empty
        groups = self._groups(pixels)
        if self._pool is None:
            logits = self._join([self._group(group) for group in groups])
            computed = None
            if self.device.type == "cuda" and not in_order:
                event: Any = torch.cuda.Event  # not typed by torch
                computed = event(blocking=True)  # leaves the core that would spin to the decoders
                computed.record(torch.cuda.current_stream(self.device))
            return _PendingLogits(logits, pixels, computed)
        futures = [self._pool.submit(self._group, group) for group in groups]
        # joined by the caller, outside inference mode, so that the result may enter the student's graph
        return lambda: self._join([future.result() for future in futures])

    def outputs(self, pixels: Tensor) -> Tensor:
        """The network's own outputs for `pixels`, before conversion to logits: float32 (N, K) on the CPU.
        With several frames per clip there is one row per frame.
        """
        groups = self._groups(pixels)
        run = map if self._pool is None else self._pool.map
        return torch.cat([rows.float().cpu() for rows in run(self._group_outputs, groups)])

    def dummy_input(self, n: int) -> Tensor:
        """`n` black images, or the frames of `n` clips, uint8, in the size of real ones."""
        frames = self.input_map.frames
        n_frames = () if frames is None else (len(frames.picks),)
        side = self._image_px
        return torch.zeros(n, 3, *n_frames, side, side, dtype=torch.uint8, device=self.device)

    def _groups(self, pixels: Tensor) -> list[Tensor]:
        """Split the images of a call into groups of at most a forward's batch size."""
        frames, n = self.input_map.frames, self.forward.batch_size
        images = pixels if frames is None else frames.images(pixels)
        return [images[start : start + n] for start in range(0, len(images), n)]

    def _join(self, groups: list[Tensor]) -> Tensor:
        """Join the groups' logits into one float16 row per image or clip."""
        frames = self.input_map.frames
        rows = torch.cat(groups)
        return (rows if frames is None else frames.answer(rows)).to(torch.float16)

    def require_finite(self, logits: Tensor) -> None:
        """Raise NonFiniteLogitsError, with the row numbers, if any row of (N, K) logits is not finite or
        larger than a sound source could give.
        """
        for part, columns in self.source.with_columns():
            self.require_finite_output(logits[:, columns], part)

    def require_finite_output(self, logits: Tensor, source: Source) -> None:
        """`require_finite` of the rows of `source`, one of the outputs that are computed here."""
        largest = source.largest_logit
        bad = insane_rows(logits, largest)
        if bad:
            fast = self.forward.compute != "fp32"
            spec = source.spec
            raise NonFiniteLogitsError(
                f"{spec.name} gave NaN, infinite or over {largest:g} {spec.output_noun} for "
                f"{len(bad)} of {len(logits)} rows, {worst_value(logits[bad[0]]):.4g} first; check its "
                f"weights ({source.weights_path}){', or compute it with --amp fp32' if fast else ''}",
                bad,
            )

    def _group(self, pixels: Tensor) -> Tensor:
        """Float32 logits for at most a forward's images."""
        rows = self._group_outputs(pixels)
        parts = self.source.with_columns()
        return torch.cat([as_logits(rows[:, columns], part.spec.returns) for part, columns in parts], dim=1)

    def _group_outputs(self, pixels: Tensor) -> Tensor:
        """The network's outputs for at most a forward's images, computed as a full batch."""
        n, batch_size = len(pixels), self.forward.batch_size
        pixels = pixels.to(self.device)
        if n < batch_size:
            pixels = torch.cat([pixels, pixels[:1].expand(batch_size - n, *pixels.shape[1:])])
        return self._in_modes(self._network, pixels)[:n]

    def _in_modes(self, network: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
        """Run a network on all images; modes are entered here because each belongs to one thread."""
        dtype = DTYPES[self.forward.compute]
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32),
            exact_kernels(self.device),
        ):
            return network(pixels)

    def _eager(self) -> Callable[[Tensor], Tensor]:
        """The input map followed by the network, in its fastest memory layout."""
        # a program's kernels were traced for its own layout; elsewhere channels last is up to 1.6 x faster
        if self.source.is_traced:
            layout, module = torch.contiguous_format, program_to_device(self.source.module, self.device)
        else:
            module = self.source.module.to(self.device)
            to_channels_last(module)
            layout = input_layout(module, reads_clips=self.source.spec.reads_clips)
        input_map = self.input_map

        def network(pixels: Tensor) -> Tensor:
            z: Tensor = module(input_map(pixels).contiguous(memory_format=layout))
            return z

        return network

    def _require_readable(self) -> Callable[[Tensor], Tensor]:
        """Try the network, so that it fails here, with a clear message, and not in the first batch."""
        name, side, forward = self.source.spec.name, self.input_map.side_px, self.forward
        if self.source.side_range_px is not None:
            low, high = self.source.side_range_px
            if not low <= side <= high:
                sizes = f"{low} px" if low == high else f"{low} to {high} px"
                raise SourceError(
                    f"{name} reads pictures of {sizes}, this target gives it {side} px; "
                    f"pass --source-size {min(max(side, low), high)}, or export the program for {side} px"
                )
        self.source.require_batch_size(forward.batch_size)
        # a program's guards may restrict the batch size, and a GPU may lack memory for a whole batch
        whole = self.source.is_traced or self.device.type == "cuda"
        n = forward.batch_size if whole or (forward.compute != "fp32" and self._shown is not None) else 1
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
            actual = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            what = self.source.spec.output_noun
            raise SourceError(
                f"{name} returns {actual}, expected {what} of shape {wanted}; export the {what} alone"
            )
        if self.source.is_traced:
            few = self.source.nearest_batch_size(2)
            require_same_bits(partial(self._try, network), self._images(few), name)
        if forward.compiled:
            network = compile_network(network, self.device)
            with compiler_errors(name):
                z = self._try(network, self._images(forward.batch_size))
        if plain is not None:
            for part, columns in self.source.with_columns():
                require_agreement(part.spec.name, forward, z[:, columns], plain[:, columns])
        return network

    def _try(self, network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Run one forward in the same threads as later ones: code is compiled for a number of threads."""
        if self._pool is None:
            return self._in_modes(network, images)
        return self._pool.submit(self._in_modes, network, images).result()

    def _images(self, n: int) -> Tensor:
        """`n` images to try the network on: those in `shown`, repeated, or black ones."""
        frames = self.input_map.frames
        shown = self.dummy_input(n) if self._shown is None else self._shown.to(self.device)
        images = shown if frames is None else frames.images(shown)
        n_repeats = -(-n // len(images))
        return images.repeat(n_repeats, *[1] * (images.ndim - 1))[:n]

    def _plain_answers(self) -> Tensor | None:
        """See `sskt.sources.plain`. None if no images were given, or the source runs plainly anyway."""
        source, batch_size = self.source, self.forward.batch_size
        is_plain = source.is_traced and self.forward == Forward("fp32", batch_size)
        if self._shown is None or is_plain:
            return None
        if source.is_traced:  # it may be tied to one batch size, and its kernels fix the memory layout
            module, n = program_to_device(source.module, self.device), batch_size
        else:
            module, n = source.module.to(self.device), min(MAX_SHOWN, batch_size)
        return plain_answers(module, self.input_map(self._images(n)), keeps_layout=source.is_traced)
