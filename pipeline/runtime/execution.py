"""How work is run, apart from what it computes; never part of a fingerprint."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from pipeline.runtime import coerce
from pipeline.runtime.memory import processes_here
from sskt.errors import RunError
from sskt.sources import DTYPES, Forward, default_batch_size, default_compute

_COMPILE_FROM = 10_000  # images that pay for some ten seconds of compiling, also at 74 px
_DRAWN_AT_A_TIME = 64  # images, or one forward's where those are more


@dataclass(frozen=True, slots=True)
class Execution:
    """Device, threads and the like. What of it changes a row's last bits is recorded with a store."""

    device: torch.device
    compute: str | None = None  # precision of frozen networks: fp32, bf16, fp16; None: as a store has it
    renderer: str = "auto"
    threads: int = 2
    batch_size: int | None = None  # of one forward of a frozen network; None: what is fastest here
    compiled: bool | None = None  # frozen networks compiled; None: where a job is long enough to pay for it

    @property
    def precision(self) -> str:
        """Of frozen networks where no store says otherwise."""
        return self.compute or default_compute(self.device)

    def forward(self, n_images: int, *, fastest: int | None = None) -> Forward:
        """How a job of `n_images` is computed; `fastest` is the batch size measured to be so."""
        compiled = n_images >= _COMPILE_FROM if self.compiled is None else self.compiled
        batch_size = self.batch_size or fastest or default_batch_size(self.device)
        return Forward(self.precision, batch_size, compiled)


def drawn_at_a_time(batch_size: int) -> int:
    """Images in a rendered batch: whole forwards of `batch_size`."""
    return max(1, _DRAWN_AT_A_TIME // batch_size) * batch_size


def choose_execution(
    *,
    device: str = "auto",
    amp: str = "auto",
    renderer: str = "auto",
    threads: int | None = None,
    batch_size: int | None = None,
    compiled: bool | None = None,
) -> Execution:
    """The device and how frozen networks run; `auto` takes CUDA (torchrun's local rank's) and the fastest
    precision that is exact enough. `threads` decode (left out: one a core, shared by torchrun's processes
    here); `batch_size` is that of one forward. A CUDA device becomes torch's current one.
    """
    threads = coerce.whole_or_none(threads, "threads")
    batch_size = coerce.whole_or_none(batch_size, "batch_size")
    chosen = _device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        # for --deterministic; torch reads it once, at its first use of cuBLAS
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    compute = None if amp == "auto" else amp
    threads = threads or max(1, (os.cpu_count() or 1) // processes_here())
    return Execution(chosen, compute, renderer, threads, batch_size, compiled=compiled)


def _device(name: str) -> torch.device:
    """Raises RunError for what is no device, or none that is here."""
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
    """`amp`, or for auto what a student trains fastest in: bf16 on devices that compute in it, else fp16 on
    CUDA and fp32 on a CPU. Raises RunError for fp16 on a CPU.
    """
    on_cuda = device.type == "cuda"
    if amp == "fp16" and not on_cuda:
        raise RunError(
            "--amp fp16 trains on CUDA alone, a CPU is slower in it than in fp32; use fp32 or bf16"
        )
    if amp != "auto":
        return amp
    if on_cuda:
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"


def channels_last(device: torch.device) -> bool:
    """Whether a student trains faster with its channels last: 1.2 x on a CPU (ResNet20, 32 px)."""
    return device.type in ("cuda", "cpu")


def autocast(device: torch.device, amp: str) -> torch.autocast | nullcontext[None]:
    """Plain fp32, or autocast to bf16 or fp16."""
    return nullcontext() if amp == "fp32" else torch.autocast(device.type, dtype=DTYPES[amp])
