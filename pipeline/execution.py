"""How work is run, apart from what it computes; never part of a fingerprint."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.plan import Plan
from pipeline.render import Renderer, open_renderer
from pipeline.targets.index import TargetIndex
from sskt.sources.forward import Forward, default_compute, default_rows

_COMPILE_FROM = 10_000  # forwards that pay for some ten seconds of compiling, also at 74 px
_DRAWN_AT_A_TIME = 64  # pictures, or one forward's rows where those are more


@dataclass(frozen=True, slots=True)
class Execution:
    """Device, threads and the like. What of it changes a row's last bits is recorded with a store."""

    device: torch.device
    compute: str | None = None  # precision of frozen networks: fp32, bf16, fp16; None: as a store has it
    renderer: str = "auto"
    threads: int = 2
    rows: int | None = None  # of one forward of a frozen network; None: what is fastest here
    compiled: bool | None = None  # frozen networks compiled; None: where a job is long enough to pay for it

    @property
    def precision(self) -> str:
        """Of frozen networks where no store says otherwise."""
        return self.compute or default_compute(self.device)

    def open_renderer(self, index: TargetIndex, plan: Plan, *, batch_size: int) -> Renderer:
        """A renderer for batches of at most `batch_size`; see `pipeline.render.open_renderer`."""
        return open_renderer(
            index,
            plan,
            backend=self.renderer,
            device=self.device,
            batch_size=batch_size,
            threads=self.threads,
        )

    def forward(self, n_forwards: int, *, rows: int | None = None) -> Forward:
        """How a job of `n_forwards` pictures is computed; `rows` is what was measured to be fastest."""
        compiled = n_forwards >= _COMPILE_FROM if self.compiled is None else self.compiled
        return Forward(self.precision, self.rows or rows or default_rows(self.device), compiled)


def drawn_at_a_time(rows: int) -> int:
    """Pictures to a rendered batch: whole forwards of `rows`."""
    return max(1, _DRAWN_AT_A_TIME // rows) * rows


def processes_here() -> int:
    """How many of torchrun's processes share this machine's cores and memory; 1 without torchrun."""
    said = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(said)) if said.isdecimal() else 1


def memory_for_pictures() -> int:
    """Bytes that decoded pictures may take up in this process: an eighth of the memory for all ranks."""
    if not hasattr(os, "sysconf"):  # Windows
        return 1 << 30
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_memory_limits()]) // 8 // processes_here()


def _memory_limits(root: Path = Path("/")) -> list[int]:
    """What control groups (containers, Slurm) leave this process: the limits of its group and those above."""
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
    said = [file.read_text().strip() for file in files if file.is_file()]
    return [int(limit) for limit in said if limit.isdecimal()]  # v2 says "max" where there is none
