"""Seconds of a store on an S3 server (moto, in a process of its own) that takes 50 ms for each answer.

Usage: PYTHONPATH=.:tests python benchmarks/object_store.py

"cpu" is this process's time: that, and 0.05 s a round trip, is about what an idle machine takes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
from cache_samples import fill, logits_of, new_store

from cache import Store, location

SERVER = Path(__file__).resolve().parents[1] / "tests" / "s3_server.py"


def measure(what, act):
    """Run a step and print what it took."""
    start, cpu = perf_counter(), process_time()
    result = act()
    print(f"{what:24} {perf_counter() - start:6.2f} s, cpu {process_time() - cpu:.2f} s")
    return result


def main() -> None:
    """A store of 32 units of one view: made, filled, opened and read."""
    command = [sys.executable, str(SERVER), "0.05"]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    settings = {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1"}
    settings["ENDPOINT_URL"] = server.stdout.readline().strip()
    os.environ.update({f"AWS_{name}": value for name, value in settings.items()})
    place = location("s3://bucket/stores")
    place.fs.mkdir("bucket")
    store = measure("make a store", lambda: new_store(place, n=128, block_rows=4, views=1))
    logits = logits_of(store)
    measure("write 32 units", lambda: fill(store, logits))
    reader = measure("open it", lambda: Store.open(store.path))
    measure("a view of 32 units", lambda: reader.view(0))
    measure("the same view again", lambda: reader.view(0))
    reader = Store.open(store.path)
    measure("32 rows of 32 units", lambda: reader.rows(0, np.arange(0, 128, 4)))
    reader = Store.open(store.path)
    measure("4 rows of 1 unit", lambda: reader.rows(0, np.arange(4)))
    measure("verify", reader.verify)
    server.stdin.close()
    server.wait()


if __name__ == "__main__":
    main()
