"""How much memory this process may use and has used, and what happens to memory that tensors free."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import torch

# None on Windows
resource: Any = importlib.import_module("resource") if importlib.util.find_spec("resource") else None

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's mallopt(3)
_LARGEST_ON_HEAP, _KEPT_FREE = 32 << 20, (1 << 31) - 1  # bytes: the largest values that mallopt accepts


def n_local_processes() -> int:
    """How many of torchrun's processes share this machine's cores and memory; 1 without torchrun."""
    n = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(n)) if n.isdecimal() else 1


def memory_for_images() -> int:
    """Bytes that decoded images may occupy in this process: an eighth of memory, shared by the ranks."""
    if not hasattr(os, "sysconf"):  # Windows
        return 1 << 30
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_memory_limits()]) // 8 // n_local_processes()


def peak_memory(device: torch.device) -> dict[str, float | None]:
    """The most memory that this process has held, in MB (None on Windows), and on CUDA that of its tensors
    there.
    """
    peak: float | None = None
    if resource is not None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    if device.type != "cuda":
        return {"peak_memory_mb": peak}
    return {"peak_memory_mb": peak, "peak_cuda_mb": torch.cuda.max_memory_allocated(device) / 1e6}


def _memory_limits(root: Path = Path("/")) -> list[int]:
    """Memory limits in bytes of the process's control group (container, Slurm) and of those above it."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    files: list[Path] = []
    for _, controllers, name in (line.split(":", 2) for line in groups):
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / ("sys/fs/cgroup/memory" if controllers else "sys/fs/cgroup")
        file = "memory.limit_in_bytes" if controllers else "memory.max"
        group = top / name.lstrip("/")
        files += [folder / file for folder in (group, *group.parents) if folder.is_relative_to(top)]
    limits = [file.read_text().strip() for file in files if file.is_file()]
    return [int(limit) for limit in limits if limit.isdecimal()]  # v2 writes "max" for no limit


def ask_for_large_pages() -> None:
    """Have torch ask for pages of 2 MB for large tensors, unless the user has set THP_MEM_ALLOC_ENABLE.

    For a process that computes stage one alone: clearing pages of 4 KB, which every forward takes anew, was a
    sixth of its time on a CPU. A training, which keeps its memory, gets slower by it and needs more
    (benchmarks/RESULTS.md). torch reads the variable once, at its first tensor, and on Linux alone.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def reuse_freed_memory() -> None:
    """Let this process keep memory that tensors free, up to 2 GB, for later tensors.

    Every step on a CPU allocates and frees the same hundreds of megabytes. glibc returns them to the kernel,
    which clears each page again: up to a sixth of a ResNet20 step (benchmarks/RESULTS.md). Does nothing
    without glibc, or if the user has configured its allocator by MALLOC_ variables or GLIBC_TUNABLES.
    """
    chosen = "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ)
    if chosen or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent from musl
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_ON_HEAP)
        mallopt(_TRIM_THRESHOLD, _KEPT_FREE)
