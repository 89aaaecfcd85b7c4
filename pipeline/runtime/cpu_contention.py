"""What other processes take of this machine while a student trains on its CPU."""

from __future__ import annotations

import os
from pathlib import Path
from time import monotonic

import torch

_STAT = Path("/proc/stat")
_NOTICED = 0.25  # cores of other processes that are worth a word
_LEAST_S = 5.0  # to measure over
_BUSY = (0, 1, 2, 5, 6)  # of /proc/stat's times: user, nice, system, irq, softirq
_SAYS_HOW_TO_WAIT = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


class CpuContention:
    """Cores that other processes compute on."""

    def __init__(self) -> None:
        self._since, self._others = monotonic(), _seconds_of_others()

    def cores(self) -> float | None:
        """Their mean number since it was last told, or since this was made; None where the system does not
        say (Linux does), and for less than some seconds.
        """
        took = monotonic() - self._since
        if took < _LEAST_S:
            return None
        before, self._others = self._others, _seconds_of_others()
        self._since += took
        return None if before is None or self._others is None else max(0.0, self._others - before) / took

    def remark(self) -> str | None:
        """A sentence, if they are in the way of torch's threads, which wait for each other in a loop that
        keeps cores busy: on a full machine a step takes 1.4 to 4 times as long as it would without
        (benchmarks/RESULTS.md). None where nobody is, and where the environment says how to wait.
        """
        threads, n_cores, others = torch.get_num_threads(), os.cpu_count() or 1, self.cores()
        if threads < 2 or others is None or any(name in os.environ for name in _SAYS_HOW_TO_WAIT):
            return None
        if others < _NOTICED or threads + others <= n_cores:
            return None
        return (
            f"other processes keep {others:.1f} of this machine's {n_cores} cores busy, and this one's "
            f"{threads} threads slow each other down; with OMP_WAIT_POLICY=passive in the environment, also "
            f"with --resume, it gets on 1.4 to 4 times as fast beside them"
        )


def _seconds_of_others() -> float | None:
    """Processor seconds since the machine's start that were not this process's."""
    try:
        times = _STAT.read_text().splitlines()[0].split()[1:]
        busy = sum(int(times[i]) for i in _BUSY) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None
    mine = os.times()
    return busy - mine.user - mine.system
