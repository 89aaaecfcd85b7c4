"""What `--engine ray` costs: a job of stage one on a warm Ray cluster, and the same job by the local engine.

    python benchmarks/engines.py --target cifar10 --data-dir data --limit 40000 \
        --source imagenet --weights imagenet=resnet50.safetensors

The cluster is one node on this machine, warm when the job's clock starts: it has run a small job. Both
engines are timed as whole commands in turn, and must write the same bytes. With a small --limit and more
--rounds the difference is what a job pays once; what a task pays is milliseconds. Ray's own processes take
some 0.04 of a core all the time, from the job where it has every core; OMP_NUM_THREADS=1 leaves them one.
With it, --at-once runs both jobs side by side: a machine that is now faster, now slower is so for both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

from ray.cluster_utils import Cluster


def seconds(args: argparse.Namespace, stores: Path, limit: int, engine: str) -> tuple[float, float]:
    """The time that a user's command takes, and how much of it the rows take."""
    words = [sys.executable, "-m", "cli", "precompute", "--target", args.target, "--data-dir", args.data_dir]
    words += ["--source", args.source, *(word for pair in args.weights for word in ("--weights", pair))]
    words += ["--views", "1", "--limit", str(limit), "--source-size", str(args.source_size)]
    words += ["--cache-dir", str(stores), "--device", "cpu", "--amp", "fp32", "--json"]
    words += ["--engine", engine, *(("--workers", "1") if engine == "ray" else ())]
    started = perf_counter()
    printed = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
    return perf_counter() - started, json.loads(printed)[0]["wall_s"]


def rows(stores: Path) -> dict[str, bytes]:
    """Every chunk, by its path."""
    return {str(f.relative_to(stores)): f.read_bytes() for f in stores.rglob("c.*") if f.is_file()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="digits")
    parser.add_argument("--source", required=True)
    parser.add_argument("--weights", action="append", default=[])
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--source-size", type=int, default=74)
    parser.add_argument("--limit", type=int, default=40000, help="images of the job")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--at-once", action="store_true", help="both engines' jobs side by side")
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])  # for the workers, too
    os.environ |= {"RAY_worker_niceness": "0"}  # as docs/scale.md advises
    node = {"num_cpus": os.cpu_count(), "object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    os.environ["RAY_ADDRESS"] = cluster.address
    with tempfile.TemporaryDirectory() as folder:
        for engine in ("ray", "local"):
            seconds(args, Path(folder, "warm", engine), 256, engine)
        for i in range(args.rounds):
            stores = {engine: Path(folder, str(i), engine) for engine in ("ray", "local")}
            order = ("ray", "local")[:: -1 if i % 2 else 1]
            with ThreadPoolExecutor(2 if args.at_once else 1) as pool:
                jobs = {e: pool.submit(seconds, args, stores[e], args.limit, e) for e in order}
                timed = {engine: jobs[engine].result() for engine in stores}
            shown = [
                f"{e} {took:.1f} s ({of_rows:.1f} of them for rows)" for e, (took, of_rows) in timed.items()
            ]
            print(f"{', '.join(shown)}, ratio {timed['ray'][0] / timed['local'][0]:.4f}", flush=True)
            found = rows(stores["ray"])
            assert found, "no rows were found"
            assert found == rows(stores["local"]), "the engines differ"
    cluster.shutdown()


if __name__ == "__main__":
    main()
