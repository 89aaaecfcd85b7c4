"""Kill -9 a training run at random moments, start the same command again, compare with an uninterrupted run.

    python benchmarks/kill_training.py --kills 20 --source program:squeezenet.pt2

The metrics of every epoch (except times and memory), the last student and the best one must be identical.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MEASURED = ("_s", "_share", "_mb")  # suffixes of measured times and memory


def main() -> None:
    args = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        campaign(args, Path(scratch))


def campaign(args: argparse.Namespace, folder: Path) -> None:
    words = [sys.executable, "-m", "cli"]
    where = [
        "--data-dir",
        str(args.data_dir),
        "--cache-dir",
        str(folder / "stores"),
        "--limit",
        str(args.limit),
    ]
    taught = [word for source in args.source for word in ("--source", source)]
    taught += [word for pair in args.weights for word in ("--weights", pair)]
    what = [*taught, "--target", args.target, *where]
    subprocess.run([*words, "precompute", *what, "--views", "2"], check=True)
    settings = ["--epochs", str(args.epochs), "--model", "resnet20", "--eval-every", "10"]
    begin = [*words, "train", *what, *settings]
    whole, killed = folder / "whole", folder / "killed"
    started = time.monotonic()
    subprocess.run([*begin, "--out", str(whole)], check=True, stdout=subprocess.DEVNULL)
    print(f"{args.epochs} epochs, {time.monotonic() - started:.0f} s without kills", flush=True)
    moments, kills, states = random.Random(args.seed), 0, []
    while kills < args.kills:
        process = subprocess.Popen(
            [*begin, "--out", str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        try:
            process.wait(timeout=moments.uniform(args.shortest, args.longest))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
            n_epochs = len(numbers(killed)) if (killed / "metrics.jsonl").exists() else 0
            states.append(n_epochs)
            print(f"{kills} kills, {n_epochs} epochs", end="  ", flush=True)
            continue
        if process.returncode:
            raise SystemExit(f"\nthe run failed: {process.stderr.read()}")
        raise SystemExit(f"\nthe run ended after {kills} kills; use more --epochs or a smaller --longest")
    subprocess.run([*begin, "--out", str(killed)], check=True, stdout=subprocess.DEVNULL)
    assert numbers(killed) == numbers(whole), "the metrics differ"
    for name in ("student.safetensors", "best.safetensors"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), f"{name} differs"
    print(f"\n{kills} kills: {len(numbers(whole))} epochs of the same metrics, the same students")


def numbers(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    metrics = []
    for line in lines:
        try:
            metrics.append({k: v for k, v in json.loads(line).items() if not k.endswith(MEASURED)})
        except json.JSONDecodeError:  # torn by a kill
            break
    return metrics


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="cifar10")
    parser.add_argument("--source", action="append", required=True)
    parser.add_argument("--weights", action="append", default=[])
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--shortest", type=float, default=0.5, help="seconds of a life, at least")
    parser.add_argument("--longest", type=float, default=25.0)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
