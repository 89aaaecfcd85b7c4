"""The size and error of top-k rows, on the logits of a real store with all classes.

    python benchmarks/topk.py stores/cifar10/train/imagenet-resnet50/0123456789ab.zarr

KL is the divergence of the source's distribution from the one that a student would learn, in nats, mean over
rows, at temperature T, with the tail spread evenly. "tail off" is the largest error in any row of the total
probability of the top k; "renormalised" is that error if the tail is simply dropped, as is usual.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from cache.store import Store
from sskt.topk import decode, encode, row_width

KS = (1, 8, 16, 32, 64, 128, 256)
TEMPERATURES = (1, 2, 3, 5, 10)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path)
    parser.add_argument("--rows", type=int, default=4096)
    args = parser.parse_args()
    store = Store.open(args.store)
    logits = torch.from_numpy(store.view(0)[: args.rows])
    n = store.n_classes
    print(f"{store.manifest.identity['source']['name']}, {len(logits)} rows of {n} classes")
    print(
        "\n| k | bytes per row | "
        + " | ".join(f"KL, T = {t}" for t in TEMPERATURES)
        + " | tail off | renormalised |"
    )
    print("|---" * (len(TEMPERATURES) + 4) + "|")
    for k in (k for k in KS if row_width(k) < n):
        rows = encode(logits, k)
        classes = rows.view(torch.int16)[:, k : 2 * k].long() & 0xFFFF
        divergences, worst, plain = [], 0.0, 0.0
        for t in TEMPERATURES:
            p = (logits.double() / t).log_softmax(dim=1)
            q = (decode(rows, n, t).double() / t).log_softmax(dim=1)
            divergences.append(float((p.exp() * (p - q)).sum(dim=1).mean()))
            top = p.exp().gather(1, classes).sum(dim=1)
            worst = max(worst, float((top - q.exp().gather(1, classes).sum(dim=1)).abs().max()))
            plain = max(plain, float((1 - top).max()))
        shown = " | ".join(f"{kl:.4f}" for kl in divergences)
        print(f"| {k} | {2 * row_width(k)} | {shown} | {worst:.4f} | {plain:.2f} |")
    print(f"| all | {2 * n} | " + " | ".join("0" for _ in TEMPERATURES) + " | 0 | 0 |")


if __name__ == "__main__":
    main()
