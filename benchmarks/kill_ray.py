"""Kill workers, nodes and drivers of `--engine ray` at random moments, with the store on S3; then check it.

    python benchmarks/kill_ray.py --kills 30 --source program:squeezenet.pt2

A Ray cluster of two nodes and an S3 server (moto) run on this machine. Each kill is of a worker that
computes, of the second node with everything on it, which comes back, or of the driver, whose command is given
again; all with SIGKILL. Checked at the end: every file has the bytes of the local engine's, nothing is left
over, and finished units were not computed again: no more rows were sent twice than kills could cause.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer
from ray.cluster_utils import Cluster

KINDS = ("worker", "node", "driver")
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}


class Puts(logging.Handler):
    """Counts what the S3 server has accepted of each unit's rows."""

    def __init__(self) -> None:
        super().__init__()
        self.of = Counter[str]()

    def emit(self, record: logging.LogRecord) -> None:
        method, _, rest = record.getMessage().partition('"')[2].partition(" ")
        if method.endswith("PUT") and "/logits/c" in rest and '" 200' in rest:
            self.of[rest.split()[0]] += 1


def start(args: argparse.Namespace, stores: str, *engine: str) -> subprocess.Popen:
    """The whole of stage one, as a user starts it."""
    words = [sys.executable, "-m", "cli", "precompute", "--target", args.target, "--data-dir", args.data_dir]
    words += [word for source in args.source for word in ("--source", source)]
    words += ["--views", str(args.views), "--limit", str(args.samples), "--cache-dir", stores]
    words += ["--device", "cpu", "--amp", "fp32", "--threads", "1", "--no-compile", *engine]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL)


def computing(nodes) -> list[int]:
    """The workers of these nodes that run a task."""
    raylets = {str(process.process.pid) for node in nodes for process in node.all_processes["raylet"]}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if parent in raylets and (folder / "cmdline").read_bytes().startswith(b"ray::_do"):
                found.append(int(folder.name))
        except OSError:  # it has just ended
            continue
    return found


def campaign(args: argparse.Namespace, whole: Path, puts: Puts) -> dict[str, int]:
    """Kill until there have been enough; returns how many of each kind."""
    assert start(args, str(whole)).wait() == 0, "the local engine failed"
    cluster = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
    os.environ["RAY_ADDRESS"] = cluster.address
    second, rng, counts = cluster.add_node(**NODE), random.Random(args.seed), dict.fromkeys(KINDS, 0)
    ray = ("s3://stores/hurt", "--engine", "ray", "--workers", "2")
    driver = start(args, *ray)
    while sum(counts.values()) < args.kills:
        kind, before = rng.choice(KINDS), puts.of.total()
        while puts.of.total() == before and driver.poll() is None:  # until there is work to lose
            time.sleep(0.05)
        time.sleep(rng.uniform(0, args.longest))
        if driver.poll() is not None:
            raise SystemExit(f"all was done after {counts}; use more --views or a smaller --longest")
        if kind == "node":
            cluster.remove_node(second, allow_graceful=False)
            second = cluster.add_node(wait=False, **NODE)
        elif kind == "driver":
            driver.kill()
            driver.wait()
            driver = start(args, *ray)
        elif victims := computing([cluster.head_node, second]):
            os.kill(rng.choice(victims), signal.SIGKILL)
        else:
            continue
        counts[kind] += 1
        print(counts, flush=True)
    assert driver.wait() == 0, "the last driver failed"
    cluster.shutdown()
    return counts


def check(s3, whole: Path) -> int:
    """Compare every object with the file of the local engine's store; returns their number."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="stores", Prefix="hurt/")
    names = [each["Key"].removeprefix("hurt/") for page in pages for each in page.get("Contents", [])]
    ours = {name for name in names if ".zarr/" in name}
    assert ours == {str(f.relative_to(whole)) for f in whole.rglob("*") if f.is_file() and ".zarr/" in str(f)}
    for name in ours:
        if not name.endswith(".json"):  # which say when the store was made
            stored = s3.get_object(Bucket="stores", Key=f"hurt/{name}")["Body"].read()
            assert stored == (whole / name).read_bytes(), f"{name} differs"
    assert not s3.list_multipart_uploads(Bucket="stores").get("Uploads")
    return len(ours)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="digits")
    parser.add_argument("--source", action="append", required=True)
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--views", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--longest", type=float, default=3.0, help="seconds from a unit to a kill, at most")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    server, puts = ThreadedMotoServer(port=0), Puts()
    logging.getLogger("werkzeug").addHandler(puts)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    code = str(Path(__file__).resolve().parents[1])  # for the workers, too
    os.environ |= {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "PYTHONPATH": code, **keys}
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="stores")
    with tempfile.TemporaryDirectory() as folder:
        counts = campaign(args, Path(folder), puts)
        n = check(s3, Path(folder))
    twice = puts.of.total() - len(puts.of)
    assert twice <= 2 * args.kills, f"{twice} finished units were written again"
    print(
        f"{counts}: {n} files with the bytes of the local engine's, none left over, {twice} units sent twice"
    )
    server.stop()


if __name__ == "__main__":
    main()
