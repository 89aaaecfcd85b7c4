"""Does `--recipe fast` reach the paper's accuracy in a tenth of its epochs, and what does each part bring?

    python benchmarks/fast_recipe.py --data-dir DATA                          # what the claim needs: 9 runs
    python benchmarks/fast_recipe.py --data-dir DATA --arms all --seeds 1     # every part left out in turn
    python benchmarks/fast_recipe.py --data-dir DATA --arms paper --seeds 1   # the 400 epochs themselves

Plan, before any run. Full CIFAR-10 (50,000 images to train on, 10,000 to test), ResNet20, labels alone
(`--method scratch`), a new view each epoch, the device's default precision, seeds 0, 1, 2.

* Claim: the mean test top-1 of `fast`, 40 epochs, is at least the 92.19 % (± 0.09) that SSKT's table S1
  prints for the paper's recipe (400 epochs here). Compared with `paper in 40`, the paper's recipe with
  `--epochs 40`, and with `fast in 20`. It is the last epoch's figure: a best epoch would be chosen on the
  test images. If the claim fails, the table says by how much.
* Parts: every other arm changes one thing about `fast`. A part stays in the recipe if leaving it out costs
  more than the standard deviation over the seeds of `fast`; one that is not there yet (label smoothing, a
  longer average, other rates, batches and decays) comes in on the same terms. One seed shows what to look at
  with three.
* Batch norms: the average's statistics are averages themselves. "re-estimated" is the test top-1 of the same
  weights with statistics from one pass over the training images; the two should agree within 0.1 points.

A run of 40 epochs on one thread of a CPU with AVX512-BF16, otherwise idle, should take about 70 minutes (500
images/s; one process a core, with `--arms` shared out), and on a GPU one to two. Finished runs in --out are
skipped and stopped ones resumed, so it can be interrupted and its arms can be spread over several calls.
`--limit` and `--epochs` make it small. Prints a table; writes curves.png, test top-1 by epoch, beside the
runs.
"""

import argparse
import statistics
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from time import perf_counter

import torch
from torch.optim.swa_utils import update_bn

from pipeline.api import Augmentation, Paths, choose_execution, open_dataset
from pipeline.commands.output import show_remarks
from pipeline.data.datasets import parse_target
from pipeline.data.render import in_batches, open_renderer
from pipeline.runtime import Execution, autocast
from pipeline.studies.series import train_or_resume
from pipeline.train.evaluate import Evaluator
from pipeline.train.run_folder import read_config, read_metrics, read_student, read_summary
from sskt.normalise import normalise
from sskt.recipes import recipe_for
from sskt.students.student import build_student

FAST = {"recipe": "fast"}
# settings, and the epochs as a factor on the fast recipe's; None: the paper's own number
ARMS: dict[str, tuple[dict, float | None]] = {
    "fast": (FAST, 1),
    "paper in 40": ({}, 1),
    "fast in 20": (FAST, 0.5),
    "fast in 10": (FAST, 0.25),
    "paper": ({}, None),
    "no average": (FAST | {"ema": 0.0}, 1),
    "longer average": (FAST | {"ema": 0.998}, 1),
    "steps for a cycle": (FAST | {"schedule": "multistep", "lr": 0.2}, 1),
    "plateau": (FAST | {"warm_up": 0.1, "cool_down": 0.5}, 1),
    "no Nesterov": (FAST | {"nesterov": False}, 1),
    "norms decay": (FAST | {"decay_norms": True}, 1),
    "smoothing 0.1": (FAST | {"label_smoothing": 0.1}, 1),
    "batch 128": (FAST | {"batch_size": 128, "lr": 0.2}, 1),
    "batch 512": (FAST | {"batch_size": 512, "lr": 0.8}, 1),
    "half the rate": (FAST | {"lr": 0.2}, 1),
    "twice the rate": (FAST | {"lr": 0.8}, 1),
    "decay 2e-4": (FAST | {"weight_decay": 2e-4}, 1),
    "decay 1e-3": (FAST | {"weight_decay": 1e-3}, 1),
}
CLAIM = ("fast", "paper in 40", "fast in 20")
PUBLISHED = 92.19  # ResNet20 from scratch, test top-1 in percent


def main() -> None:
    args = _arguments()
    started = perf_counter()
    paths, execution = Paths(args.data_dir, args.out / "stores"), choose_execution(threads=args.threads)
    arms = list(ARMS) if args.arms == "all" else [name.strip() for name in args.arms.split(",")]
    for seed in range(args.seeds):  # so that a part of it already compares
        for arm in arms:
            settings, factor = ARMS[arm]
            full = args.epochs or recipe_for(args.target, name="fast").epochs
            epochs = None if factor is None else max(1, round(factor * full))
            before = perf_counter()
            summary = train_or_resume(
                args.target,
                args.out / _slug(arm, seed),
                method="scratch",
                model=args.model,
                seed=seed,
                limit=args.limit,
                epochs=epochs,
                eval_every=max(1, (epochs or 400) // 10),
                amp=args.amp,
                paths=paths,
                execution=execution,
                **settings,
            )
            print(
                f"{arm}, seed {seed}: {summary['test_top1']:.2f} %, {perf_counter() - before:.0f} s",
                flush=True,
            )
    table(arms, args, paths, execution)
    draw(arms, args)
    print(f"{perf_counter() - started:.0f} s in all")


def table(arms, args, paths: Paths, execution: Execution) -> None:
    print(f"\n| arm | epochs | top-1, last epoch | by seed | less {PUBLISHED} | re-estimated | s / epoch |")
    print("|---|---|---|---|---|---|---|")
    for arm in arms:
        folders = [args.out / _slug(arm, seed) for seed in range(args.seeds)]
        runs = [read_summary(folder) for folder in folders]
        top1 = [run["test_top1"] for run in runs]
        again = "-"
        if read_config(folders[0])["ema"]:
            again = _spread([reestimated(folder, args, paths, execution) for folder in folders])
        cells = [arm, runs[0]["epochs"], _spread(top1), ", ".join(f"{value:.2f}" for value in top1)]
        cells += [f"{statistics.mean(top1) - PUBLISHED:+.2f}", again]
        cells += [f"{statistics.median(run['epoch_s'] for run in runs):.1f}"]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def reestimated(folder: Path, args, paths: Paths, execution: Execution) -> float:
    """Test top-1 of a run's student with batch norm statistics from one pass over its training images."""
    config, device = read_config(folder), execution.device
    student = build_student(config["model"], len(config["classes"]), {}, transfer_module=False)
    student.load_state_dict(read_student(folder))
    student.to(device)
    train = open_dataset(args.target, "train", paths=paths, limit=args.limit)
    test = open_dataset(args.target, "test", paths=paths)
    spec = parse_target(args.target)
    plan = Augmentation().training_plan(spec)

    def batches() -> Iterator[torch.Tensor]:
        with closing(open_renderer(train, plan, execution, batch_size=config["batch_size"])) as renderer:
            for pixels in renderer.render(0, in_batches(range(len(train)), config["batch_size"])):
                yield normalise(pixels.to(device), student.backbone.mean, student.backbone.std)

    with autocast(device, config["amp"]):
        update_bn(batches(), student)
    plan = Augmentation().evaluation_plan(spec)
    return Evaluator(test, plan, execution).accuracy(student, config["amp"])["test_top1"]


def draw(arms, args) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for arm in arms:
        lines = [read_metrics(args.out / _slug(arm, seed)) for seed in range(args.seeds)]
        seen = [[m for m in metrics if "test_top1" in m] for metrics in lines]
        epochs = [m["epoch"] for m in seen[0]]
        means = [statistics.mean(m["test_top1"] for m in each) for each in zip(*seen, strict=True)]
        axes.plot(epochs, means, label=arm)
    axes.axhline(PUBLISHED, color="grey", linestyle=":")
    axes.set_xlabel("epoch")
    axes.set_ylabel("test top-1 in %")
    axes.legend(fontsize=8)
    figure.savefig(args.out / "curves.png", dpi=150)


def _slug(arm: str, seed: int) -> str:
    return f"{arm.replace(' ', '-')}-{seed}"


def _spread(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {spread:.2f} %"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="cifar10")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--arms", default=",".join(CLAIM), help=f"all, or of {', '.join(ARMS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="of the fast recipe, instead of its own")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--amp", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("runs/fast-recipe"))
    return parser.parse_args()


if __name__ == "__main__":
    with show_remarks():
        main()
