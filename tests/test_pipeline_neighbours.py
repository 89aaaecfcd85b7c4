"""Other processes beside a training: measured for real, and what is said of them."""

import os
import subprocess
import sys
import time

import pytest
import torch

from pipeline.runtime import cpu_contention as neighbours
from pipeline.runtime.cpu_contention import CpuContention

HOG = "import time; end = time.monotonic() + 60\nwhile time.monotonic() < end: pass"


@pytest.fixture
def clock(monkeypatch, tmp_path):
    """A machine of 4 cores whose processor times are what the test says."""
    stat, now, mine = tmp_path / "stat", [0.0], [0.0]

    def passes(seconds, *, busy, own):
        now[0] += seconds
        mine[0] += own
        ticks = int(os.sysconf("SC_CLK_TCK") * busy)
        # user nice system idle iowait irq softirq steal: idle, waiting and stolen time is nobody's
        stat.write_text(f"cpu  {ticks - 4} 1 1 999999 8888 1 1 7777 0 0\ncpu0 1 1 1\n")

    monkeypatch.setattr(neighbours, "_STAT", stat)
    monkeypatch.setattr(neighbours, "monotonic", lambda: now[0])
    monkeypatch.setattr(os, "times", lambda: os.times_result((0.75 * mine[0], 0.25 * mine[0], 0, 0, 0)))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for name in neighbours._WAIT_POLICIES:
        monkeypatch.delenv(name, raising=False)
    passes(0, busy=100, own=20)
    return passes


def test_what_others_compute_is_all_time_but_ones_own(clock):
    since = CpuContention()
    clock(10, busy=100 + 45, own=30)
    assert since.cores() == pytest.approx(1.5)
    clock(20, busy=145 + 60, own=20)  # who comes later is not thinned out by the time before
    assert "keep 2.0 of this machine's 4 cores busy, and this one's 3 threads" in since.remark()


@pytest.mark.parametrize(
    ("busy", "own"),
    [
        (30, 30),  # alone
        (32, 30),  # a little
        (39.9, 30),  # as much as the fourth core
        (20, 30),  # clocks that disagree
    ],
)
def test_nobody_in_the_way_is_not_worth_a_word(clock, busy, own):
    since = CpuContention()
    clock(10, busy=100 + busy, own=own)
    assert since.remark() is None


def test_a_few_seconds_and_another_system_tell_nothing(clock, monkeypatch):
    since = CpuContention()
    clock(4, busy=100 + 16, own=4)
    assert since.cores() is None
    clock(6, busy=116 + 24, own=6)
    assert since.cores() == pytest.approx(3.0)
    monkeypatch.setattr(neighbours, "_STAT", neighbours._STAT.parent / "missing")
    assert CpuContention().cores() is None
    clock(10, busy=200, own=0)
    assert since.cores() is None


@pytest.mark.parametrize("case", ["as it is", "one thread", *neighbours._WAIT_POLICIES])
def test_one_thread_and_who_has_chosen_how_to_wait_are_told_nothing(clock, monkeypatch, case):
    since = CpuContention()
    clock(10, busy=100 + 40, own=10)
    if case == "one thread":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    elif case != "as it is":
        monkeypatch.setenv(case, "active")
    assert (since.remark() is not None) == (case == "as it is")


@pytest.mark.skipif(not neighbours._STAT.exists(), reason="needs Linux's /proc/stat")
def test_a_process_that_keeps_a_core_busy_is_seen(monkeypatch):
    monkeypatch.setattr(neighbours, "_MIN_S", 0.5)
    hog = subprocess.Popen([sys.executable, "-c", HOG])
    try:
        since = CpuContention()
        time.sleep(0.7)
        assert since.cores() > 0.3
    finally:
        hog.kill()
        hog.wait()
