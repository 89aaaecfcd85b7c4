"""Few labels: train on a folder of images or videos, from scratch and with two sources, over several seeds.

    python benchmarks/few_labels.py imagefolder:scene15 --weights imagenet=FILE --program FILE --size 128
    python benchmarks/few_labels.py videofolder:three --weights imagenet=FILE --program FILE --size 56
        --clip-frames 8 --methods "scratch; SSKT; SSKT source_frames=frames:3"
    python benchmarks/few_labels.py voc --weights imagenet=FILE --program FILE --size 112 --source-size 224
    python benchmarks/few_labels.py cifar10 --weights imagenet=FILE --program FILE --views 3
        --labels-per-class 100 --steps 1955 --methods "scratch; SSKT; probe"

With --labels-per-class, scratch trains on the images that keep their label, the others on all images; --steps
gives every method as many steps. Scratch then sees a new view in every epoch, the best that it can have.

The sources are ImageNet's ResNet50 and, with --program, an exported program; their logits are cached first,
unless they are already. A method is a kind of run (scratch, SSKT, probe, or both: a probe and a head per
source), with settings of the API: "SSKT alpha=0.3; probe probe_views=own". Settings not given are the
recipe's. Finished runs are reused, so an interrupted benchmark can be continued.
"""

import argparse
import ast
import re
import statistics
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from pipeline import api
from pipeline.api import Augmentation, Paths
from pipeline.commands.output import show_remarks
from pipeline.data.datasets import parse_target
from pipeline.train.run_folder import read_summary

# the sources of each kind of run; settings of the API follow its name: "probe probe_views=own mixup=0.2"
KINDS = ("scratch", "SSKT", "probe", "both")  # both: a head per source beside the probe of all
EXTRA_METRICS = {"test_map": ("test_image_ap",)}  # as the released code reports for VOC


def main() -> None:
    args = _arguments()
    started = perf_counter()
    methods = [name.strip() for name in args.methods.split(";")]
    name, _, path = args.weights.partition("=")
    paths = Paths(data_dir=args.data_dir, cache_dir=args.cache_dir, weights={name: Path(path)})
    sources = (name, f"program:{args.program}") if args.program else (name,)
    plain = Augmentation(side_px=args.size, source_side_px=args.source_size, n_frames=args.clip_frames)
    if parse_target(args.target).holds_videos:
        api.prepare(args.target, paths=paths)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    by_method = {}
    for method in methods:
        kind, settings = parse(method)
        frames = settings.get("source_frames")
        by_method[method] = replace(plain, source_frames=frames) if frames else plain
        if kind != "scratch":
            api.precompute(
                [args.target],
                sources,
                views=args.views,
                augmentation=by_method[method],
                paths=paths,
                unlabelled=settings.get("unlabelled", ()),
            )
    print(f"stage one: {perf_counter() - started:.0f} s", flush=True)
    for seed in seeds:
        for method in methods:
            folder = _folder(args, method, seed)
            if (folder / "config.json").is_file() and read_summary(folder) is None:
                api.resume(folder, paths=paths)
            elif read_summary(folder) is None:
                train(args, method, seed, sources, by_method[method], paths, folder)
    runs = {m: [read_summary(_folder(args, m, seed)) or {} for seed in seeds] for m in methods}
    metric = runs[methods[0]][0]["metric"]
    for name in (metric, *EXTRA_METRICS.get(metric, ())):
        table(name, runs)
    print(f"{perf_counter() - started:.0f} s in all")


def table(metric, runs) -> None:
    print(f"\n| {metric:<22} | last epoch | best epoch | by seed (last) | s / epoch |\n|---|---|---|---|---|")
    for method, summaries in runs.items():
        last = [run[metric] for run in summaries]
        best = [run[f"best_{metric}"] for run in summaries if f"best_{metric}" in run]
        each = ", ".join(f"{value:.2f}" for value in last)
        seconds = statistics.median(run["epoch_s"] for run in summaries)
        print(
            f"| {method:<22} | {_spread(last)} | {_spread(best) if best else ''} | {each} | {seconds:.2f} |"
        )


def parse(method: str) -> tuple[str, dict[str, Any]]:
    """The kind of run and its settings, of "KIND NAME=VALUE ..."."""
    kind, *given = method.split()
    if kind not in KINDS:
        raise SystemExit(f"--methods: {kind!r} is not one of {', '.join(KINDS)}")
    settings = {}
    for name, _, text in (setting.partition("=") for setting in given):
        try:
            settings[name] = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            settings[name] = text
    return kind, settings


def train(args, method, seed, sources, augmentation, paths, folder) -> None:
    kind, settings = parse(method)
    n_classes, n_samples = _counts(args, paths)
    limit = None
    if kind == "scratch":
        limit = None if args.labels_per_class is None else args.labels_per_class * n_classes
        supervision = {"method": "scratch", "views": None if limit else args.views, "limit": limit}
    else:
        names = {"SSKT": sources, "probe": ("probe:" + "+".join(sources),)}.get(kind)
        names = names or ("probe:" + "+".join(sources), *sources)
        supervision = {"sources": names, "labels": "cached", "views": args.views}
        if args.labels_per_class is not None:
            supervision["labels_per_class"] = args.labels_per_class
            supervision["labelled_share"] = args.labelled_share
    epochs = args.epochs
    if args.steps is not None:
        epochs = max(1, round(args.steps / -(-(limit or n_samples) // (args.batch_size or 128))))
    settings.pop("source_frames", None)
    usual = {
        "epochs": epochs,
        "milestones": (epochs // 2, epochs * 3 // 4) if args.recipe == "paper" else None,
        "lr": args.lr,
        "batch_size": args.batch_size,
    }
    api.train(
        args.target,
        augmentation=augmentation,
        paths=paths,
        out=folder,
        seed=seed,
        model=args.model,
        amp=args.amp,
        val_share=0.0,
        recipe=args.recipe,
        eval_every=max(1, epochs // 5) if args.steps is not None else 5,
        **(supervision | usual | settings),
    )


def _counts(args, paths) -> tuple[int, int]:
    """Classes and training samples of the target."""
    dataset = api.open_dataset(args.target, "train", paths=paths)
    return len(dataset.classes), len(dataset)


def _folder(args, method: str, seed: int) -> Path:
    return args.out / f"{re.sub('[^a-zA-Z0-9.=]+', '-', method)}-{seed}"


def _spread(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {spread:.2f} %"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--program", help="a second source; without it there is one")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--model")
    parser.add_argument("--labels-per-class", type=int)
    parser.add_argument("--labelled-share", type=float)
    parser.add_argument("--steps", type=int, help="instead of --epochs")
    parser.add_argument("--size", type=int)
    parser.add_argument("--source-size", type=int)
    parser.add_argument("--clip-frames", type=int)
    parser.add_argument("--views", type=int, default=10)
    parser.add_argument("--recipe", default="paper", help="paper, its rate dropped twice; or fast")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--amp", default="auto")
    parser.add_argument("--methods", default="scratch; SSKT", help="separated by semicolons")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--cache-dir", type=Path, default=Path("stores"))
    parser.add_argument("--out", type=Path, default=Path("runs/few-labels"))
    return parser.parse_args()


if __name__ == "__main__":
    with show_remarks():
        main()
