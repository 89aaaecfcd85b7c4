"""Requests and seconds of a store on an S3 server (moto, on the loopback) that takes 50 ms for each answer.

Usage: python benchmarks/object_store.py
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from time import perf_counter

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from cache_samples import fill, logits_of, new_store
from s3_server import S3Server

from cache import Store, location


def main() -> None:
    """Print one line per step: a store of 32 units of one view, made, filled, opened and read."""
    server = S3Server()
    settings = {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1"}
    os.environ.update({f"AWS_{name}": value for name, value in settings.items()}, AWS_ENDPOINT_URL=server.url)
    place = location("s3://bucket/stores")
    place.fs.mkdir("bucket")
    server.wait_s = 0.05

    def measure(what, act):
        server.requests.clear()
        start = perf_counter()
        result = act()
        print(f"{what:24} {server.requests.total():4} requests {perf_counter() - start:6.2f} s")
        return result

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


if __name__ == "__main__":
    main()
