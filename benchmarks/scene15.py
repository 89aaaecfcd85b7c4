"""Few labels: ResNet18 on a folder of pictures, from scratch and with two sources, several seeds; prints a
table.

usage: scene15.py FOLDER --weights imagenet=PATH --program PATH [--epochs N] [--seeds N] [--size PX] [--views
    V] [--out DIR]

FOLDER is an imagefolder (train/ and val/). The sources are ImageNet's ResNet50 and an exported program; their
logits are cached first, if they are not yet. Runs that are finished already are taken as they are, so an
interrupted bench goes on.
"""

import argparse
import json
import statistics
from pathlib import Path
from time import perf_counter

from pipeline.api import Supervision, Tuning, run_precompute, run_train
from pipeline.choices import Augmentation, Places, choose_execution

METHODS = {"scratch": None, "SSKT": False, "SSKT + transfer module": True}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--program", required=True)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--views", type=int, default=10)
    parser.add_argument("--amp", default="bf16")
    parser.add_argument("--methods", default="scratch,SSKT")
    parser.add_argument("--cache-dir", type=Path, default=Path("stores"))
    parser.add_argument("--out", type=Path, default=Path("runs/scene15"))
    args = parser.parse_args()
    name, _, path = args.weights.partition("=")
    places = Places(cache_dir=args.cache_dir, weights={name: Path(path)})
    sources = (name, f"program:{args.program}")
    target = f"imagefolder:{args.folder}"
    augmentation = Augmentation(side_px=args.size, source_side_px=224)
    execution = choose_execution(device="auto", amp="auto", renderer="auto", threads=2)
    started = perf_counter()
    run_precompute(
        [target],
        sources,
        views=args.views,
        augmentation=augmentation,
        places=places,
        execution=execution,
        limit=None,
        say=print,
    )
    print(f"stage one: {perf_counter() - started:.0f} s", flush=True)
    for seed in range(args.seeds):
        for method in args.methods.split(","):
            folder = args.out / f"{method.replace(' ', '')}-{seed}"
            if (folder / "summary.json").is_file():
                continue
            transfer = METHODS[method]
            supervision = (
                Supervision(method="scratch", views=args.views)
                if transfer is None
                else Supervision(sources=sources, labels="cached", views=args.views, transfer_module=transfer)
            )
            milestones = (args.epochs // 2, args.epochs * 3 // 4)
            run_train(
                target,
                supervision=supervision,
                augmentation=augmentation,
                places=places,
                execution=execution,
                out=folder,
                say=lambda text, label=f"{method}, seed {seed}": print(f"{label}: {text}", flush=True),
                seed=seed,
                tuning=Tuning(amp=args.amp),
                overrides={"epochs": args.epochs, "milestones": milestones},
                eval_every=5,
            )
    print(f"\n{'':<26}{'last top-1 %':>16}{'best top-1 %':>16}{'s / epoch':>12}")
    for method in args.methods.split(","):
        runs = [
            json.loads((args.out / f"{method.replace(' ', '')}-{seed}" / "summary.json").read_text())
            for seed in range(args.seeds)
        ]
        last, best = ([run[key] for run in runs] for key in ("test_top1", "best_test_top1"))
        seconds = statistics.median(run["epoch_s"] for run in runs)
        print(f"{method:<26}{_spread(last):>16}{_spread(best):>16}{seconds:>12.1f}")
    print(f"{perf_counter() - started:.0f} s in all")


def _spread(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {spread:.2f}"


if __name__ == "__main__":
    main()
