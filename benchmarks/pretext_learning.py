"""Does each pretext task learn where there is something to learn, and not where every frame is the same?

    python benchmarks/pretext_learning.py --out runs/pretext-learning

200 made videos of 24 frames, 40 of them held out: a textured shape crosses a background that pans slowly. The
small networks at 48 px, three seeds. The figure of a task is that of the held-out videos after the last
epoch: right answers in percent, for prediction the error of showing the last frame again over that of the
next frame. A task must clear its bar, which lies half-way between chance and what three seeds reached when it
was set; the control, videos whose frames are all alike, must not be sorted, nor told close from far. (They
have nothing to track, and their last frame is the next.) Finished runs in --out are reused.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import api
from pipeline.api import Augmentation, Paths, choose_execution

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from made_motion import make_folder

N_PER_CLASS, HELD_OUT = 100, 0.2


class Task(NamedTuple):
    """Its network, settings, the bar of its figure, and what it may reach on the control."""

    model: str
    settings: dict[str, Any]
    bar: float
    control_below: float | None = None


TASKS = {
    "sorting": Task("vgg19-sorting-small", {"epochs": 40, "batch_size": 16, "lr": 0.01}, 40.0, 15.0),
    "egomotion": Task("vgg19-egomotion-small", {"epochs": 40, "batch_size": 16, "lr": 0.01}, 80.0, 65.0),
    "tracking": Task("vgg19-tracking-small", {"epochs": 20, "batch_size": 16, "lr": 0.01}, 80.0),
    "prediction": Task("prednet-small", {"epochs": 20}, 1.25),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/pretext-learning"))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[*TASKS])
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    short = []
    for name in args.tasks:
        task = TASKS[name]
        reached = [figure(name, seed, args, moves=True) for seed in seeds]
        shown = f"{name}: {_listed(reached)}, bar {task.bar:g}"
        fails = min(reached) < task.bar
        if task.control_below is not None:
            control = [figure(name, seed, args, moves=False) for seed in seeds]
            shown += f"; frames all alike: {_listed(control)}, at most {task.control_below:g}"
            fails |= max(control) > task.control_below
        print(shown, flush=True)
        short += [name] * fails
    if short:
        raise SystemExit(f"not as they should be: {', '.join(short)}")


def figure(task: str, seed: int, args: argparse.Namespace, *, moves: bool) -> float:
    """What a run reaches on its held-out videos."""
    kind = "moving" if moves else "still"
    videos, paths = args.out / kind, Paths(args.out / "data", args.out / "stores")
    if not videos.is_dir():
        make_folder(videos, N_PER_CLASS, moves=moves)
        api.prepare(f"videofolder:{videos}", paths=paths)
    summary = api.pretext_or_resume(
        f"videofolder:{videos}",
        task=task,
        model=TASKS[task].model,
        out=args.out / f"{kind}-{task}-{seed}",
        val_share=HELD_OUT,
        augmentation=Augmentation(side_px=48),
        paths=paths,
        execution=choose_execution(threads=args.threads),
        amp="fp32",
        seed=seed,
        eval_every=5,
        **TASKS[task].settings,
    )
    if task == "prediction":
        return float(summary["val_copy_mse"] / summary["val_next_frame_mse"])
    return float(summary["accuracy"])


def _listed(figures: list[float]) -> str:
    return f"{statistics.mean(figures):.3g} ({', '.join(f'{figure:.3g}' for figure in figures)})"


if __name__ == "__main__":
    main()
