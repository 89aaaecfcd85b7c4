"""A full disk, a read-only one, two writers, a clock that goes back, a signal in the middle of a write."""

import os
import random
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from cache_samples import fill, filled_store, logits_of, new_store
from processes import Process, wait_for_less

from cache.errors import CacheError, StoreIncomplete
from cache.store import Store, Unit

TESTS = Path(__file__).parent


@contextmanager
def disk(folder, size):
    """A file system of its own of `size` bytes."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_told_loses_nothing_and_goes_on_when_there_is_room(tmp_path):
    with disk(tmp_path / "disk", 700_000) as folder:
        store = new_store(folder, n=1000, classes=100, block_rows=250, views=4)
        logits = logits_of(store)
        with pytest.raises(CacheError, match=r"cannot be written \(No space left on device\); make room"):
            fill(store, logits)
        done = [unit for unit in (Unit(v, b) for v in range(4) for b in range(4)) if store.finished(unit)]
        assert 8 <= len(done) < 16
        assert store.verify() == []
        assert not list(folder.rglob("*.tmp-*"))
        np.testing.assert_array_equal(store.view(0), logits[0])
        with pytest.raises(CacheError, match="No space left on device"):
            fill(store, logits)
        subprocess.run(["mount", "-o", "remount,size=2000000", str(folder)], check=True)
        assert fill(store, logits).verify() == []
        for view in range(4):
            np.testing.assert_array_equal(store.view(view), logits[view])


def test_trimming_makes_room_on_a_full_disk(tmp_path):
    with disk(tmp_path / "disk", 700_000) as folder:
        store = new_store(folder, n=1000, classes=100, block_rows=250, views=4)
        logits = logits_of(store)
        with pytest.raises(CacheError, match="No space left on device"):
            fill(store, logits)
        with (folder / "filler").open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
        with pytest.raises(OSError, match="No space left on device"):
            (folder / "more").write_bytes(b"x")
        store.trim(1)
        assert (Store.open(store.path).n_views, store.verify()) == (1, [])
        np.testing.assert_array_equal(store.view(0), logits[0])
        (folder / "more").write_bytes(bytes(200_000))


def test_no_room_for_a_store_leaves_nothing(tmp_path):
    with disk(tmp_path / "disk", 60_000) as folder:
        with pytest.raises(CacheError, match=r"the store cannot be created \(No space left on device\)"):
            new_store(folder, n=20_000)
        assert list(folder.iterdir()) == []


def test_a_read_only_disk_is_told_and_can_be_read(tmp_path):
    with disk(tmp_path / "disk", 1_000_000) as folder:
        store, logits = filled_store(folder)
        store.grow(3)
        path = store.path
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        again = Store.open(path)
        np.testing.assert_array_equal(again.view(1), logits[1])
        assert again.verify() == []
        for act in (
            lambda: again.write_unit(Unit(2, 0), logits[0, :4]),
            lambda: again.grow(5),
            lambda: new_store(folder / "other"),
        ):
            with pytest.raises(CacheError, match="Read-only file system"):
                act()


WRITER = """
import os
import random
import sys
from pathlib import Path
from cache_samples import logits_of
from cache.store import Store, Unit
store = Store.open(Path({path!r}))
logits = logits_of(store)
units = store.pending(store.n_views)
random.Random({seed}).shuffle(units)
print("ready", flush=True)
sys.stdin.readline()
for unit in units:
    store.write_unit(unit, logits[unit.view, store.rows_of(unit.block)])
print(len(units))
"""


def start(code):
    process = Process("-c", code)
    assert process.stdout.readline() == b"ready\n"
    return process


def test_two_writers_at_once_and_a_reader_meanwhile(tmp_path):
    store = new_store(tmp_path, n=300, classes=40, block_rows=10, views=4)
    logits = logits_of(store)
    codes = [WRITER.format(path=str(store.path), seed=seed) for seed in range(2)]
    writers = [start(code) for code in codes]
    for writer in writers:
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
    whole = 0
    while any(writer.poll() is None for writer in writers):
        try:
            np.testing.assert_array_equal(store.view(whole % 4), logits[whole % 4])
            whole += 1
        except StoreIncomplete:
            continue
    for writer in writers:
        writer.communicate()
    assert [writer.returncode for writer in writers] == [0, 0]
    assert store.verify() == []
    for view in range(4):
        np.testing.assert_array_equal(store.view(view), logits[view])


def test_a_clock_that_goes_back_changes_nothing(tmp_path):
    """Files from the year 2096, then a writer whose clock says 2001."""
    store = new_store(tmp_path, n=20, block_rows=5)
    logits = logits_of(store)
    store.write_unit(Unit(0, 0), logits[0, :5])
    for file in store.path.rglob("*"):
        os.utime(file, (4e9, 4e9))
    code = "import time\ntime.time = lambda: 1e9\ntime.time_ns = lambda: 10**18\n"
    writer = start(code + WRITER.format(path=str(store.path), seed=1))
    assert writer.communicate(b"go\n")[0] == b"7\n"
    assert store.sweep() == 0
    assert store.verify() == []
    np.testing.assert_array_equal(Store.open(store.path).view(1), logits[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_writing_loses_no_finished_unit(tmp_path, number):
    store = new_store(tmp_path, n=400, classes=300, block_rows=4, views=2)
    logits = logits_of(store)
    rng = random.Random(3)
    finished: set[Unit] = set()
    for _ in range(6):
        writer = start(WRITER.format(path=str(store.path), seed=rng.random()))
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
        wait_for_less(store, len(store.pending(2)), writer)
        time.sleep(rng.uniform(0.0, 0.05))
        writer.send_signal(number)
        writer.communicate()
        now = {Unit(v, b) for v in range(2) for b in range(100)} - set(store.pending(2))
        assert finished <= now
        finished = now
        assert store.verify() == []
        store.sweep()
        assert not list(tmp_path.rglob("*.tmp-*"))
    assert len(finished) > 0
    fill(store, logits)
    for view in range(2):
        np.testing.assert_array_equal(store.view(view), logits[view])
