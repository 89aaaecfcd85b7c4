"""Does graph distillation teach more than uniform distillation, and than labels alone? Made videos for power,
real clips beside them, with three controls: uniform edges, maps of another sample, teachers without pretext.

    python benchmarks/graph_evidence.py made --out runs/graph-evidence
    python benchmarks/graph_evidence.py clips --clips three --out runs/graph-evidence

`made` draws videos of 8 classes (4 shapes, 2 textures) under moving backgrounds: 12 labelled to train on and
125 to test on a class, and 400 more for the pretext tasks; 5 seeds. `clips` takes a folder of
{train,test}/CLASS/v_CLASS_gGROUP_cNUMBER.avi, in 3 folds by group; 3 seeds.

A seed has its own pretext tasks, teachers and students. T0 and the weight of the representation graph are
chosen on seed 0 of `made` by a fifth of the training videos, then fixed (`--temperature`, `--rep-weight`).
Finished runs are reused, so a stopped benchmark goes on; so are the answers in --answers, which are small
enough to be committed: seeds can come from several machines. The table has mean paired differences of
accuracy with 95 % intervals by a bootstrap over seeds and test videos.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import api
from pipeline.api import Augmentation, Paths, choose_execution
from pipeline.studies.series import precompute_once, train_or_resume
from sskt.methods import Graph, register
from sskt.students import PRETEXTS, alexnet_grid

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from made_motion import frames, write

SHAPES, TEXTURES = ("disc", "square", "triangle", "ring"), ("noise", "stripes")
NETWORKS = {task: f"vgg19-{task}-small" for task in PRETEXTS} | {"prediction": "prednet-small"}
SIDE, VIEWS, CLIPS = 64, 4, 3
GRID = min(6, alexnet_grid(SIDE))
TRIED = {"temperature": (1.0, 2.0, 4.0), "rep_weight": (1.0, 10.0, 100.0)}
# what each student is taught with: settings, and the outputs of the teachers that it reads
LOGITS, MAPS = ("logits",), (f"layer4:{GRID}",)
OFF = {"graph_logits": "off", "graph_features": "off"}
EM, GR = {"graph_logits": "em", "edges": "learned"}, {"graph_features": "graph"}
METHODS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "scratch": ({"method": "scratch"}, ()),
    "kd uniform": ({"method": "kd"}, LOGITS),
    "mmgd": ({**OFF, "graph_logits": "cosine"}, LOGITS),
    "gl": ({**OFF, **EM}, LOGITS),
    "feature uniform": ({**OFF, "graph_features": "uniform"}, MAPS),
    "gr": ({**OFF, **GR}, MAPS),
    "gl+gr": ({**OFF, **EM, **GR}, LOGITS + MAPS),
    "gl, uniform edges": ({**OFF, **EM, "edges": "uniform"}, LOGITS),
    "gr, maps of another sample": ({**OFF, **GR, "method": "graph-rolled"}, MAPS),
    "gl+gr, no pretext": ({**OFF, **EM, **GR}, LOGITS + MAPS),
}
WITHOUT_PRETEXT = "gl+gr, no pretext"
COMPARED = (
    ("gl+gr", "kd uniform"), ("gl", "mmgd"), ("gr", "feature uniform"), ("gl+gr", "scratch"),
    ("gl", "gl, uniform edges"), ("gr", "gr, maps of another sample"), ("gl+gr", WITHOUT_PRETEXT),
)  # fmt: skip


class Rolled(Graph):
    """Each sample is compared with the maps of the sample before it in the batch, a control."""

    def _representation_graph(self, graph, block, outputs):
        rolled = {name: outputs[name].roll(1, dims=0) for name in graph.names}
        return super()._representation_graph(graph, block, {**outputs, **rolled})


@dataclass(frozen=True)
class Fold:
    """Videos to train on and to test on, and others for the pretext tasks."""

    name: str
    root: Path
    more: tuple[str, ...] = ()

    @property
    def target(self) -> str:
        return f"videofolder:{self.root}"


def main() -> None:
    args = _arguments()
    register("graph-rolled", Rolled)
    folds = [made(args.out / "made")] if args.part == "made" else by_group(args.clips, args.out / "clips")
    seeds = range(args.seeds or (5 if args.part == "made" else 3))
    paths = Paths(args.out / "data", args.out / "stores")
    for target in (target for fold in folds for target in (fold.target, *fold.more)):
        api.prepare(target, paths=paths)
    if args.choose:
        return choose(folds[0], paths, args)
    right: dict[str, list[NDArray[np.bool_]]] = {method: [] for method in METHODS}
    for seed in seeds:
        answers: dict[str, list[NDArray[np.bool_]]] = {method: [] for method in METHODS}
        for fold in folds:
            run = Runs(fold, seed, paths, args)
            kept = Answers(args.answers / f"{args.part}-{fold.name}-{seed}.json", _settings(args))
            for method in METHODS:
                if method not in kept:
                    kept[method] = run.right(method)
                answers[method].append(kept[method])
        for method in METHODS:
            right[method].append(np.concatenate(answers[method]))
        report({method: np.stack(each) for method, each in right.items()})
    return None


class Answers:
    """Which test videos, sorted by path, the student of each method names, of a seed on a fold: a JSON file.

    The settings that made them are kept beside them; a file with others is refused.
    """

    def __init__(self, file: Path, settings: dict[str, Any]) -> None:
        self.file, self.settings = file, settings
        self.of: dict[str, str] = {}
        if file.is_file():
            found = json.loads(file.read_text())
            if found["settings"] != settings:
                raise SystemExit(
                    f"{file} was made with {found['settings']}, not {settings}: delete or move it"
                )
            self.of = found["right"]

    def __contains__(self, method: str) -> bool:
        return method in self.of

    def __getitem__(self, method: str) -> NDArray[np.bool_]:
        return np.array([answer == "1" for answer in self.of[method]])

    def __setitem__(self, method: str, right: NDArray[np.bool_]) -> None:
        self.of[method] = "".join("1" if answer else "0" for answer in right)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps({"settings": self.settings, "right": self.of}, indent=1) + "\n")


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """What the answers depend on besides seed and fold."""
    names = ("temperature", "rep_weight", "pretext_epochs", "teacher_epochs", "epochs")
    return {name: getattr(args, name) for name in names}


class Runs:
    """The runs of one seed on one fold."""

    def __init__(self, fold: Fold, seed: int, paths: Paths, args: argparse.Namespace) -> None:
        self.fold, self.seed, self.args = fold, seed, args
        self.paths, self.out = paths, args.out / f"{args.part}-{fold.name}-{seed}"
        self.common = {
            "paths": paths,
            "execution": choose_execution(),
            "seed": seed,
            "amp": "fp32",
            "augmentation": Augmentation(side_px=SIDE),
        }

    def teachers(self, *, pretext: bool = True) -> tuple[str, ...]:
        """Networks that know the classes; those with pretext began as encoders."""
        found = []
        for task, model in NETWORKS.items():
            encoder = None
            if pretext:
                epochs = self.args.pretext_epochs
                encoder = api.pretext_or_resume(
                    (self.fold.target, *self.fold.more),
                    task=task,
                    model=model,
                    out=self.out / f"pretext-{task}",
                    epochs=epochs,
                    eval_every=epochs,
                    **self.common,
                )["encoder"]
            folder = self.out / f"teacher-{task}{'' if pretext else '-no-pretext'}"
            of_prednet = {"batch_size": 16, "optimizer": "adam", "lr": 1e-4}
            usual = {"batch_size": 32, "optimizer": "sgd", "lr": 0.01, "dampening": 0.0}
            epochs = self.args.teacher_epochs
            train_or_resume(
                self.fold.target,
                folder,
                method="scratch",
                model=model,
                finetune_from=None if encoder is None else Path(encoder),
                epochs=epochs,
                eval_every=epochs,
                schedule="cosine",
                weight_decay=5e-4,
                val_share=0.0,
                **(of_prednet if task == "prediction" else usual),
                **self.common,
            )
            found.append(f"run:{folder}")
        return tuple(found)

    def student(self, method: str, folder: Path, **more: Any) -> dict[str, Any]:
        """The summary of a student's run, after its teachers' and their stores."""
        settings, outputs = METHODS[method]
        sources: tuple[str, ...] = ()
        if outputs:
            teachers = self.teachers(pretext=method != WITHOUT_PRETEXT)
            names = [t if o == "logits" else f"{t}@{o}" for o in LOGITS + MAPS for t in teachers]
            how = {name: self.common[name] for name in ("execution", "augmentation")}
            paths = self.paths.of(names)
            precompute_once(self.fold.target, names, views=VIEWS, paths=paths, amp="fp32", **how)
            sources = tuple(t if o == "logits" else f"{t}@{o}" for o in outputs for t in teachers)
        read = {"method": "graph", "alpha": 0.6, **settings}
        if read["method"] == "kd" or read.get("graph_logits") == "em":  # the others compare no probabilities
            read["temperature"] = self.args.temperature
        if settings.get("graph_features", "off") != "off":
            read["rep_weight"] = self.args.rep_weight
        if read["method"] == "scratch":
            read = {"method": "scratch"}
        epochs = self.args.epochs
        given: dict[str, Any] = {
            "sources": sources,
            "labels": "cached" if sources else "auto",
            "model": "alexnet-small",
            "views": VIEWS,
            "optimizer": "sgd",
            "lr": 0.01,
            "momentum": 0.9,
            "dampening": 0.0,
            "weight_decay": 5e-4,
            "batch_size": 32,
            "schedule": "multistep",
            "gamma": 0.5,
            "milestones": tuple(range(epochs // 7, epochs, max(1, epochs // 7))),
            "epochs": epochs,
            "eval_every": epochs,
            "val_share": 0.0,
        }
        return train_or_resume(self.fold.target, folder, **{**given, **read, **self.common, **more})

    def right(self, method: str) -> NDArray[np.bool_]:
        """Of each test video, by path, whether the student names its class: bool (n,)."""
        folder = self.out / re.sub("[^a-z+]+", "-", method)
        summary = self.student(method, folder)
        kept = folder / "right.json"
        if not kept.is_file():
            told = api.predict(folder, self.fold.root / "test", paths=self.paths, clips=CLIPS)
            if told.unusable:
                raise SystemExit(f"{folder}: {told.errors()[0]}")
            named = zip(told.files, told.top, strict=True)
            found = {str(file): told.classes[int(top)] in file.parts for file, top in named}
            kept.write_text(json.dumps(found))
        found = json.loads(kept.read_text())
        share = 100 * float(np.mean([*found.values()]))
        print(
            f"{self.fold.name}, seed {self.seed}: {method}: {share:.1f} %, {summary['epoch_s']:.2f} s/epoch",
            flush=True,
        )
        return np.array([found[name] for name in sorted(found)])


def choose(fold: Fold, paths: Paths, args: argparse.Namespace) -> None:
    """Print the validation accuracy of gl by T0, and of gr by its weight, on seed 0."""
    runs = Runs(fold, 0, paths, args)
    for (name, values), method in zip(TRIED.items(), ("gl", "gr"), strict=True):
        for value in values:
            folder = runs.out / f"choose-{name}-{value:g}"
            summary = runs.student(method, folder, val_share=0.2, **{name: value})
            shown = {key: f"{figure:.1f}" for key, figure in summary.items() if key.endswith("top1")}
            print(f"{method}, {name} {value:g}: {shown}", flush=True)


def report(right: dict[str, NDArray[np.bool_]]) -> None:
    """Print accuracies and paired differences. `right`: bool (seeds, test videos) by method."""
    print("\n| method | top-1 | by seed |\n|---|---|---|")
    for method, each in right.items():
        seeds = 100 * each.mean(axis=1)
        spread = seeds.std(ddof=1) if len(seeds) > 1 else 0.0
        print(f"| {method} | {seeds.mean():.1f} ± {spread:.1f} % | {', '.join(f'{s:.1f}' for s in seeds)} |")
    print("\n| difference | points | 95 % interval | p |\n|---|---|---|---|")
    for one, other in COMPARED:
        mean, low, high, p = paired(right[one], right[other])
        print(f"| {one} - {other} | {mean:+.1f} | {low:+.1f} to {high:+.1f} | {p:.3f} |")


def paired(
    one: NDArray[np.bool_], other: NDArray[np.bool_], *, draws: int = 4_000
) -> tuple[float, float, float, float]:
    """The mean difference in points, its 95 % interval, and a two-sided p, by a bootstrap over seeds and test
    videos.
    """
    rng = np.random.default_rng(0)
    difference = 100.0 * (one.astype(float) - other)
    n_seeds, n = difference.shape
    means = np.empty(draws)
    for draw in range(draws):
        seeds, videos = rng.integers(n_seeds, size=n_seeds), rng.integers(n, size=n)
        means[draw] = difference[seeds].mean(axis=0)[videos].mean()
    low, high = np.quantile(means, (0.025, 0.975))
    p = 2 * min((means <= 0).mean(), (means >= 0).mean())
    return float(difference.mean()), float(low), float(high), float(min(1.0, p))


def made(root: Path) -> Fold:
    """The made videos, drawn unless they are there."""
    places = [("train", 12), ("test", 125)]
    classes = list(product(SHAPES, TEXTURES))
    for (split, n), (c, (shape, texture)) in product(places, enumerate(classes)):
        for i in range(n):
            folder = root / "labelled" / split / f"{shape}-{texture}" / f"{i:03d}"
            _draw(folder, 1_000 * c + i + (100_000 if split == "test" else 0), shape, texture)
    for i in range(400 + len(classes)):
        shape, texture = classes[i % len(classes)]
        split = "test" if i < len(classes) else "train"  # a folder of videos has both; only train is read
        _draw(root / "more" / split / f"{shape}-{texture}" / f"{i:03d}", 200_000 + i, shape, texture)
    return Fold("made", root / "labelled", (f"videofolder:{root / 'more'}",))


def _draw(folder: Path, seed: int, shape: str, texture: str) -> None:
    if not folder.is_dir():
        write(folder, frames(seed, shape=shape, texture=texture))


def by_group(clips: Path, root: Path, n_folds: int = 3) -> list[Fold]:
    """Folders of links to the clips: a fold's test clips are those of every third group, by its number."""
    found = [*_clips(clips)]
    folds = []
    for k in range(n_folds):
        for file, name, group in found:
            split = "test" if group % n_folds == k else "train"
            link = root / str(k) / split / name / file.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(file.resolve())
        folds.append(Fold(f"fold{k}", root / str(k)))
    return folds


def _clips(folder: Path) -> Iterator[tuple[Path, str, int]]:
    """Each clip with its class and group."""
    for file in sorted(folder.glob("*/*/*.avi")):
        match = re.search(r"_g(\d+)_c\d+$", file.stem)
        if match is None:
            raise SystemExit(f"{file} is not named v_CLASS_gGROUP_cNUMBER.avi")
        yield file, file.parent.name, int(match[1])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("made", "clips"))
    parser.add_argument("--clips", type=Path, help="the folder of real clips")
    parser.add_argument("--out", type=Path, default=Path("runs/graph-evidence"))
    parser.add_argument("--answers", type=Path, default=Path(__file__).with_suffix(""), help="a folder")
    parser.add_argument("--seeds", type=int, help="default: 5 of made, 3 of clips")
    parser.add_argument("--choose", action="store_true", help="only choose T0 and the weight, on seed 0")
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--rep-weight", type=float, default=1.0)
    parser.add_argument("--pretext-epochs", type=int, default=20)
    parser.add_argument("--teacher-epochs", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=70)
    args = parser.parse_args()
    if args.part == "clips" and args.clips is None:
        parser.error("clips needs --clips FOLDER")
    return args


if __name__ == "__main__":
    main()
