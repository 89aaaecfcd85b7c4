"""How many views are enough? Train a student on V = 1, 2, 5, 10 stored views, and on a new one every epoch.

    python benchmarks/views.py --target cifar10 --limit 5000 --source imagenet --weights imagenet=FILE

"live" is the plan with view = epoch, with precomputed logits too: the same numbers as --labels live
(tests/test_pipeline_labels.py) at less cost. Agreement is how often a source head predicts the source's own
top class, on a view of the training images that no student has seen. Finished runs stay in --out and are
skipped.
"""

import argparse
import statistics
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from cache.store import Store, find_stores
from pipeline import api
from pipeline.api import Augmentation, Paths, choose_execution, open_dataset
from pipeline.commands.output import show_remarks
from pipeline.data.datasets import parse_target
from pipeline.data.render import in_batches, open_renderer
from pipeline.train.run_folder import read_checkpoint, read_config, read_metrics, read_summary
from sskt.normalise import IMAGENET_MEAN, IMAGENET_STD, normalise
from sskt.students import build_backbone
from sskt.students.student import Student


def main() -> None:
    args = _arguments()
    weights = {name: Path(path) for name, _, path in (pair.partition("=") for pair in args.weights)}
    paths = Paths(args.data_dir, args.out / "stores", weights)
    execution = choose_execution(amp=args.source_amp)
    common = {
        "augmentation": Augmentation(side_px=args.size, source_side_px=args.source_size),
        "paths": paths,
        "execution": execution,
        "limit": args.limit,
    }
    reports = api.precompute([args.target], args.source, views=args.epochs + 1, **common)
    for report in reports:
        if report.rows_done:
            rate = report.rows_done / report.wall_s
            print(f"stage one, {report.source}: {rate:.0f} images/s", flush=True)
    kinds = {"scratch": None, **{str(v): v for v in args.views}, "live": args.epochs}
    for seed in range(args.seeds):
        for kind, views in kinds.items():
            folder = args.out / f"{kind}-{seed}"
            if not (folder / "summary.json").is_file():
                supervision = (
                    {"method": "scratch", "views": args.epochs}
                    if views is None
                    else {"sources": tuple(args.source), "labels": "cached", "views": views}
                )
                api.train(
                    args.target,
                    out=folder,
                    model=args.model,
                    **supervision,
                    seed=seed,
                    eval_every=args.epochs // 3,
                    amp=args.amp,
                    val_share=0.0,
                    epochs=args.epochs,
                    milestones=(args.epochs // 2, args.epochs * 5 // 6),
                    batch_size=args.batch_size,
                    lr=args.lr,
                    **common,
                )
    table(args, kinds, common)


def table(args: argparse.Namespace, kinds: dict[str, int | None], common: dict) -> None:
    print("\n| views | test top-1 | train top-1 | auxiliary loss, last epoch | agreement | epoch, s |")
    print("|---|---|---|---|---|---|")
    for kind in kinds:
        folders = [args.out / f"{kind}-{seed}" for seed in range(args.seeds)]
        summaries = [read_summary(folder) for folder in folders]
        last = [read_metrics(folder)[-1] for folder in folders]
        top1 = [summary["test_top1"] for summary in summaries]
        spread = statistics.stdev(top1) if len(top1) > 1 else 0.0
        names = [name for name in last[0] if name.startswith("aux_loss")]
        losses = ", ".join(f"{statistics.mean(m[name] for m in last):.3f}" for name in names) or "-"
        by_run = [agreement(folder, args, common) for folder in folders] if names else []
        shares = ", ".join(f"{100 * np.mean([run[i] for run in by_run]):.1f} %" for i in range(len(names)))
        print(
            f"| {kind} | {statistics.mean(top1):.2f} ± {spread:.2f} % "
            f"| {statistics.mean(s['train_top1'] for s in summaries):.1f} % | {losses} | {shares or '-'} "
            f"| {statistics.median(s['epoch_s'] for s in summaries):.2f} |",
            flush=True,
        )


def agreement(folder: Path, args: argparse.Namespace, common: dict) -> list[float]:
    """For each source, the share of images whose head predicts the source's top class, on the last view."""
    config, state = read_config(folder), read_checkpoint(folder)
    view, paths = args.epochs, common["paths"]
    dataset = open_dataset(args.target, "train", paths=paths, limit=args.limit)
    probe = np.arange(min(len(dataset), args.probe))
    opened = [Store.open(path) for path in find_stores(paths.cache_dir)]
    by_name = {store.manifest.identity["source"]["name"]: store for store in opened}
    stores = [by_name[_recorded_name(name)] for name in config["sources"]]
    classes = {name: store.n_classes for name, store in zip(config["sources"], stores, strict=True)}
    student = Student(
        build_backbone(config["model"]), len(dataset.classes), classes, config["transfer_module"]
    )
    student.load_state_dict({k.removeprefix("student."): v for k, v in state["method"].items()})
    student.eval()
    plan = common["augmentation"].training_plan(parse_target(args.target))
    right = np.zeros(len(stores))
    renderer = open_renderer(dataset, plan, common["execution"], batch_size=250)
    truths = [store.view(view)[store.positions_of(dataset.ids[probe])].argmax(axis=1) for store in stores]
    with closing(renderer), torch.inference_mode():
        batches = in_batches(probe, 250)
        for positions, pixels in zip(batches, renderer.render(view, batches), strict=True):
            _, auxiliary = student(normalise(pixels, IMAGENET_MEAN, IMAGENET_STD))
            for i, logits in enumerate(auxiliary.values()):
                right[i] += (logits.argmax(dim=1).numpy() == truths[i][positions]).sum()
    return list(right / len(probe))


def _recorded_name(name: str) -> str:
    """A source's name as stores record it: programs by file name alone."""
    return f"program:{Path(name.partition(':')[2]).name}" if name.startswith("program:") else name


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="digits")
    parser.add_argument("--source", action="append", required=True)
    parser.add_argument("--weights", action="append", default=[])
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("runs/views"))
    parser.add_argument("--views", type=lambda text: [int(v) for v in text.split(",")], default=[1, 2, 5, 10])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--model")
    parser.add_argument("--size", type=int)
    parser.add_argument("--source-size", type=int)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--amp", default="auto", help="of the student")
    parser.add_argument("--source-amp", default="auto")
    parser.add_argument("--probe", type=int, default=2000, help="images that agreement is counted on")
    return parser.parse_args()


if __name__ == "__main__":
    with show_remarks():
        main()
