"""How much CPU other processes use while a student trains on this machine's CPU."""

from __future__ import annotations

import os
from pathlib import Path
from time import monotonic

import torch

_STAT = Path("/proc/stat")
_MIN_CORES = 0.25  # of other processes, below which nothing is reported
_MIN_S = 5.0  # shortest interval that is measured
_BUSY = (0, 1, 2, 5, 6)  # columns of /proc/stat: user, nice, system, irq, softirq
_WAIT_POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


class CpuContention:
    """Measures how many cores other processes keep busy."""

    def __init__(self) -> None:
        self._since, self._others = monotonic(), _seconds_of_others()

    def cores(self) -> float | None:
        """Mean number of cores since the last call, or since construction; None if that was under 5 s ago or
        the system does not report it (Linux does).
        """
        took = monotonic() - self._since
        if took < _MIN_S:
            return None
        before, self._others = self._others, _seconds_of_others()
        self._since += took
        return None if before is None or self._others is None else max(0.0, self._others - before) / took

    def remark(self) -> str | None:
        """A sentence if other processes compete with torch's spin-waiting threads: on a full machine a step
        then takes 1.4 to 4 times as long (benchmarks/RESULTS.md). None if they do not, or if the environment
        sets a wait policy.
        """
        threads, n_cores, others = torch.get_num_threads(), os.cpu_count() or 1, self.cores()
        if threads < 2 or others is None or any(name in os.environ for name in _WAIT_POLICIES):
            return None
        if others < _MIN_CORES or threads + others <= n_cores:
            return None
        return (
            f"other processes keep {others:.1f} of this machine's {n_cores} cores busy, and this one's "
            f"{threads} threads slow each other down; with OMP_WAIT_POLICY=passive in the environment, also "
            f"with --resume, it runs 1.4 to 4 times as fast"
        )


def _seconds_of_others() -> float | None:
    """CPU seconds used since boot by all processes but this one."""
    try:
        times = _STAT.read_text().splitlines()[0].split()[1:]
        busy = sum(int(times[i]) for i in _BUSY) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None
    mine = os.times()
    return busy - mine.user - mine.system
