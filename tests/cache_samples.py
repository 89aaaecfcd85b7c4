"""Small stores for the tests of the cache room, and a CRC32C written from its definition."""

import numpy as np

from cache.manifest import Manifest
from cache.store import Store, Unit

IDENTITY = {
    "source": {"name": "imagenet", "weights_sha256": "0123456789ab" + "c" * 52, "mode": "eval"},
    "input": {"side_px": 74, "antialias": False, "mean": [0.485, 0.456, 0.406]},
    "plan": {"seed": 7, "kind": "pad-crop-flip"},
    "target": {"name": "cifar10", "split": "train", "n_samples": 10},
}


def new_store(folder, *, n=10, classes=3, views=2, block_rows=4, identity=IDENTITY, seed=0, **more):
    """An empty store with shuffled ids and a probe of two pictures."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(3 * n)[:n].astype(np.int64)
    return Store.create(
        folder / "s.zarr",
        Manifest(identity=identity, made_by={"compute": "fp32", "versions": {"torch": "2"}}),
        ids=ids,
        contents=rng.integers(0, 256, (n, 16), dtype=np.uint8),
        n_classes=classes,
        views=views,
        block_rows=block_rows,
        probe_ids=ids[:2],
        probe=rng.integers(0, 256, (len(ids[:2]), 3, 5, 4), dtype=np.uint8),
        **more,
    )


def logits_of(store, seed=1):
    """(V, N, K) float16 that a store could hold."""
    shape = (store.n_views, store.n_samples, store.n_classes)
    return np.random.default_rng(seed).normal(0, 20, shape).astype(np.float16)


def fill(store, logits):
    """Write every pending unit."""
    for unit in store.pending(store.n_views):
        store.write_unit(unit, logits[unit.view, store.rows_of(unit.block)])
    return store


def filled_store(folder, **sizes):
    """A complete store and what was written into it."""
    store = new_store(folder, **sizes)
    logits = logits_of(store)
    return fill(store, logits), logits


def payload_file(store, view, block):
    """Where docs/store-format.md says that a unit lies."""
    return store.path / "logits" / f"c.{view}.{block}.0"


def entry_file(store, view, block):
    """Where docs/store-format.md says that a unit's entry lies."""
    return store.path / "units" / f"c.{view}.{block}"


def flip_byte(path, at):
    """Damage one byte of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def crc32c(data):
    """CRC32C bit by bit (RFC 3720, appendix B.4): reflected polynomial 0x82F63B78, all ones in and out."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


ALL_UNITS = [Unit(view, block) for view in range(2) for block in range(3)]  # of a store of the default sizes
