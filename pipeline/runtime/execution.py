"""How work is run, as opposed to what it computes; never part of a fingerprint."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch

from pipeline.runtime import coerce
from pipeline.runtime.memory import n_local_processes
from sskt.errors import RunError
from sskt.sources import DTYPES, Forward, default_batch_size, default_compute

_COMPILE_FROM = 10_000  # images that repay some ten seconds of compiling, even at 74 px
_RENDER_BATCH = 64  # images; one forward's if those are more


@dataclass(frozen=True, slots=True)
class Execution:
    """Device, threads and the like. Whatever changes a row's last bits is recorded with the store."""

    device: torch.device
    compute: str | None = None  # precision of frozen networks: fp32, bf16, fp16; None: the store's
    renderer: str = "auto"
    threads: int = 2
    batch_size: int | None = None  # per forward of a frozen network; None: the fastest on this machine
    compiled: bool | None = None  # compile frozen networks; None: if the job is long enough to repay it
    # the arguments of `choose_execution`, by which another machine chooses anew
    asked: dict[str, object] = field(default_factory=dict, compare=False, repr=False)

    @property
    def precision(self) -> str:
        """Precision of frozen networks unless a store prescribes one."""
        return self.compute or default_compute(self.device)

    @property
    def for_single_images(self) -> Execution:
        """For drawing a few images one at a time, which several threads do not speed up: on CUDA each thread
        of a graph takes 16 MB of the device's memory and of the host's.
        """
        return self if self.device.type == "cpu" else replace(self, threads=1)

    def forward(self, n_images: int, *, fastest: int | None = None) -> Forward:
        """How to compute a job of `n_images`; `fastest` is the batch size that was measured to be fastest."""
        compiled = n_images >= _COMPILE_FROM if self.compiled is None else self.compiled
        batch_size = self.batch_size or fastest or default_batch_size(self.device)
        return Forward(self.precision, batch_size, compiled)


def render_batch_size(batch_size: int) -> int:
    """Images per rendered batch: a whole number of forwards of `batch_size`."""
    return max(1, _RENDER_BATCH // batch_size) * batch_size


def choose_execution(
    *,
    device: str = "auto",
    amp: str = "auto",
    renderer: str = "auto",
    threads: int | None = None,
    batch_size: int | None = None,
    compiled: bool | None = None,
) -> Execution:
    """Choose the device and how frozen networks run; `auto` takes CUDA (torchrun's local rank) and the
    fastest precision that is exact enough. `threads` decode (default: one per core, shared by torchrun's
    processes on this machine); `batch_size` is that of one forward. A CUDA device becomes torch's current
    one.
    """
    asked = dict(locals())
    threads = coerce.whole_or_none(threads, "threads")
    batch_size = coerce.whole_or_none(batch_size, "batch_size")
    chosen = _device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        # for --deterministic; torch reads it once, when cuBLAS is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    compute = None if amp == "auto" else amp
    threads = threads or max(1, (os.cpu_count() or 1) // n_local_processes())
    return Execution(chosen, compute, renderer, threads, batch_size, compiled, asked)


def _device(name: str) -> torch.device:
    """Raises RunError for an unknown device, or one this machine lacks."""
    local = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if name == "auto":
        name = local if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(local if name == "cuda" else name)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise RunError(f"--device is {name!r}, expected auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise RunError(
            f"--device is {name}, and PyTorch sees {torch.cuda.device_count()} CUDA device(s) here; "
            f"use --device cpu"
        )
    return chosen


def student_precision(amp: str, device: torch.device) -> str:
    """`amp`, or for auto the precision that a student trains fastest in: on CUDA bf16 where the hardware
    computes in it, else fp16; on a CPU bf16 where that is known to be faster, else fp32. Raises RunError for
    fp16 on a CPU.
    """
    on_cuda = device.type == "cuda"
    if amp == "fp16" and not on_cuda:
        raise RunError(
            "--amp fp16 trains on CUDA only, since a CPU is slower in it than in fp32; use fp32 or bf16"
        )
    if amp != "auto":
        return amp
    if on_cuda:
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if _cpu_is_fast_in_bf16() else "fp32"


def _cpu_is_fast_in_bf16() -> bool:
    """Whether this CPU has AMX, or is an AMD with AVX512-BF16, where a step took 0.78 of the time of fp32.
    Intel's without AMX have AVX512-BF16 as well, but took 1.04 to 1.8 times as long (benchmarks/RESULTS.md).
    """
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    is_amd = str(found.get("cpu_name", "")).startswith("AMD")
    return bool(found.get("amx_bf16") or (is_amd and found.get("avx512_bf16")))


def channels_last(device: torch.device) -> bool:
    """Whether a student trains faster in channels-last layout: 1.2 x on a CPU (ResNet20, 32 px)."""
    return device.type in ("cuda", "cpu")


def autocast(device: torch.device, amp: str) -> torch.autocast | nullcontext[None]:
    """Autocast to bf16 or fp16; a null context for fp32."""
    return nullcontext() if amp == "fp32" else torch.autocast(device.type, dtype=DTYPES[amp])
