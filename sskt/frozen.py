"""A frozen source at work: the input map f_s (SSKT eq. 6), and logits as a pure function of one picture.

A row's last bits depend on how many rows and how many CPU threads compute it, since kernels are chosen by
both. So every forward has exactly the same number of rows, and on a CPU exactly one thread: several
forwards run side by side instead, which costs no speed. A row then gives the same bits whatever the batch
it came in, its place, its neighbours and the number of threads.

Departs from the released code: sources are in eval mode (there: train mode, batch statistics).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from threading import Barrier
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sskt.errors import SourceError
from sskt.sources import IMAGENET_MEAN, IMAGENET_STD, Source

__all__ = [
    "COMPUTE",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "FrozenSource",
    "InputMap",
    "NonFiniteLogitsError",
    "default_compute",
    "normalise",
    "scaled_side",
]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COMPUTE = tuple(_DTYPES)


class NonFiniteLogitsError(SourceError):
    """Some rows came out as NaN or infinite, or beyond float16's 65,504; `rows` are their positions in the
    call.
    """

    def __init__(self, message: str, rows: list[int]) -> None:
        super().__init__(message)
        self.rows = rows


@dataclass(frozen=True, slots=True)
class InputMap:
    """f_s for pictures (SSKT eq. 6): what a source sees of the target's own augmented picture. All of it is
    identity.
    """

    side_px: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    align_corners: bool = False
    antialias: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a fingerprint."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) to float32 (N, 3, side_px, side_px), normalised, then resized where the size
        differs.
        """
        x = normalise(pixels, self.mean, self.std)
        size = (self.side_px, self.side_px)
        if tuple(x.shape[-2:]) == size:
            return x
        return F.interpolate(
            x, size=size, mode=self.interpolation, align_corners=self.align_corners, antialias=self.antialias
        )


def normalise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(pixels / 255 - mean) / std by channel: uint8 (N, 3, H, W) to float32 of the same shape and device."""
    mean_c11 = torch.tensor(mean, dtype=torch.float32, device=pixels.device).view(-1, 1, 1)
    std_c11 = torch.tensor(std, dtype=torch.float32, device=pixels.device).view(-1, 1, 1)
    return (pixels.to(torch.float32) / 255 - mean_c11) / std_c11


def scaled_side(side_px: int, scale: Fraction) -> int:
    """floor(side * scale), in whole numbers: 7/3 takes 32 to 74 and 96 to 224 (METHOD.md, released-code
    facts).
    """
    return side_px * scale.numerator // scale.denominator


def default_compute(device: torch.device) -> str:
    """The fastest precision whose logits agree with fp32 on the top class in at least 99 of 100 pictures.

    On CIFAR-10 pictures at 74 px ResNet50 keeps its top class in 96 % with bf16 (8 significant bits; cosine
    at least 0.9994): too few for a default. fp16 has 11 bits; on a CPU it is several times slower than fp32.
    """
    return "fp16" if device.type == "cuda" else "fp32"


class FrozenSource:
    """One source network on one device, asked for logits; it takes over the source's module.

    `compute` is one of COMPUTE, the precision of autocast ("fp32": none). `rows` is the fixed number of rows
    of every forward (left out: 16 on a CPU, 64 elsewhere); the last group of a call is filled up with copies
    of its first row. `threads` is how many forwards a CPU runs at once (left out: torch's number). Raises
    SourceError when the network cannot read pictures of `input_map.side_px`.
    """

    def __init__(
        self,
        source: Source,
        input_map: InputMap,
        *,
        device: torch.device,
        compute: str = "fp32",
        rows: int | None = None,
        threads: int | None = None,
    ) -> None:
        if compute not in COMPUTE:
            raise SourceError(f"compute precision is {compute!r}, expected one of {', '.join(COMPUTE)}")
        on_cpu = device.type == "cpu"
        if compute == "fp16" and on_cpu:
            raise SourceError(
                f"{source.spec.name}: fp16 on a CPU is slower than fp32; use bf16 or fp32 there"
            )
        self.source = source
        self.input_map = input_map
        self.device = device
        self.compute = compute
        self.rows = rows or (16 if on_cpu else 64)
        # a program's kernels were traced for its own layout; elsewhere channels last is up to 1.6 x faster
        self._layout = torch.contiguous_format if source.spec.task == "program" else torch.channels_last
        self._module = source.module.to(device).to(memory_format=self._layout)
        self._pool = _one_thread_each(threads or torch.get_num_threads()) if on_cpu else None
        self._require_readable()

    def logits(self, pixels: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) on any device to float16 (N, K) on the source's device, without gradient.

        Raises NonFiniteLogitsError, a SourceError, with the positions of the rows concerned.
        """
        if not len(pixels):
            return torch.empty(0, self.source.spec.n_classes, dtype=torch.float16, device=self.device)
        groups = [pixels[start : start + self.rows] for start in range(0, len(pixels), self.rows)]
        run: Callable[..., Iterable[Tensor]] = self._pool.map if self._pool else map
        # outside inference mode, so that the result may enter the graph of the student's loss
        out = torch.cat(list(run(self._group, groups)))
        bad: list[int] = (~torch.isfinite(out).all(dim=1)).nonzero()[:, 0].tolist()
        if bad:
            raise NonFiniteLogitsError(
                f"{self.source.spec.name} gave NaN, infinite or over 65504 logits for {len(bad)} of "
                f"{len(out)} rows; check its weights ({self.source.weights_path}), or compute it in fp32",
                bad,
            )
        return out

    def _group(self, pixels: Tensor) -> Tensor:
        """At most `rows` pictures, computed as exactly `rows`."""
        n = len(pixels)
        pixels = pixels.to(self.device)
        if n < self.rows:
            pixels = torch.cat([pixels, pixels[:1].expand(self.rows - n, -1, -1, -1)])
        return self._forward(pixels)[:n].to(torch.float16)

    def _forward(self, pixels: Tensor) -> Tensor:
        """Raw logits of all rows; modes are entered here because each belongs to one thread."""
        dtype = _DTYPES[self.compute]
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32),
        ):
            z: Tensor = self._module(self.input_map(pixels).contiguous(memory_format=self._layout))
        return z

    def _require_readable(self) -> None:
        """Fail here, in words, and not in the first batch: some networks read only some sizes."""
        name, side = self.source.spec.name, self.input_map.side_px
        if self.source.side_range_px is not None:
            low, high = self.source.side_range_px
            if not low <= side <= high:
                sizes = f"{low} px" if low == high else f"{low} to {high} px"
                raise SourceError(
                    f"{name} reads pictures of {sizes}, this target gives it {side} px; "
                    f"choose another source, or export the program for that size"
                )
        # only an exported program may be tied to a batch size; for the others one row tells as much
        n = self.rows if self.source.spec.task == "program" else 1
        try:
            z = self._forward(torch.zeros(n, 3, side, side, dtype=torch.uint8, device=self.device))
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise SourceError(
                f"{name} cannot read {n} pictures of {side} px in {self.compute} ({reason}); "
                f"choose another source, or export the program with dynamic batch and size"
            ) from error
        wanted = (n, self.source.spec.n_classes)
        if not isinstance(z, Tensor) or tuple(z.shape) != wanted:
            found = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise SourceError(
                f"{name} returns {found}, expected logits of shape {wanted}; export the logits alone"
            )


def _one_thread_each(n_workers: int) -> ThreadPoolExecutor:
    """Worker threads in which torch computes without helpers; the caller's own number of threads stays."""
    before = torch.get_num_threads()
    started = Barrier(n_workers)

    def begin(_: int) -> None:
        torch.get_num_threads()  # a thread's first use of torch resets its number, so let that come before
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(n_workers, thread_name_prefix="frozen-source")
    list(pool.map(begin, range(n_workers)))
    torch.set_num_threads(before)  # the number is also the default of every thread born later
    return pool
