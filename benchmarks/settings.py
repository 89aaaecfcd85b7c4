"""Which settings teach most: one question at a time on real handwritten digits, each run as many steps.

    python benchmarks/settings.py
    python benchmarks/settings.py --only temperature --only alpha

Sources and student are those of `sskt demo`: two small networks that were trained on drawn letters and
strokes, and a ResNet20. Of the 1,258 training digits 50 keep their labels, five of each, unless a question is
about that; all are trained on. One setting is varied at a time, the others are those of `--recipe fast` and
of the API, and the paper's alpha of 0.1 for heads that learn classes: that 1 is better is one of the answers.
Each question also has the student from scratch on the labelled digits. Finished runs are reused, so an
interrupted study can be continued.
"""

import argparse
import logging
import re
import statistics
from pathlib import Path
from typing import Any

from pipeline import api
from pipeline.api import Paths
from pipeline.commands.output import show_remarks
from pipeline.runtime import mute_remarks
from pipeline.studies.demo_sources import demo_sources
from pipeline.train.run_folder import read_summary
from sskt.losses import LOGITS_LOSSES

N_CLASSES, N_DIGITS, BATCH, VIEWS = 10, 1258, 32, 10
TASKS = ("letters", "strokes")
SSKT, PROBE, BOTH = {"heads": "logits"}, {"probe": "features"}, {"probe": "features", "heads": "logits"}


def values(base: dict[str, Any], name: str, *given: Any, **more: Any) -> dict[str, dict[str, Any]]:
    """A run for each value of one setting."""
    return {f"{name} {value}": {**base, **more, name: value} for value in given}


QUESTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "sources": {
        "SSKT": SSKT,
        "probe": PROBE,
        "both": BOTH,
        "SSKT, labelled digits alone": {**SSKT, "pool": 0},
    },
    "temperature": values(SSKT, "temperature", 1.0, 3.0, 6.0, 12.0),
    "alpha": values(SSKT, "alpha", 0.01, 0.03, 0.1, 0.3, 1.0),
    # added when 1 had come out best of these
    "alpha, more": values(SSKT, "alpha", 3.0, 10.0),  # 30 diverges
    "alpha, beside the probe": values(BOTH, "alpha", 0.1, 1.0, 3.0),
    "alpha, mixup 0.4": {"scratch": {"mixup": 0.4}, **values({**SSKT, "mixup": 0.4}, "alpha", 0.1, 1.0, 3.0)},
    "loss": {
        "ce": SSKT,
        "kd, mean": {**SSKT, "aux_loss": "kd", "kd_reduction": "mean"},
        "kd, mean, alpha 10": {**SSKT, "aux_loss": "kd", "kd_reduction": "mean", "alpha": 10.0},
        "kd, batchmean": {**SSKT, "aux_loss": "kd", "kd_reduction": "batchmean"},
        "cosine": {**SSKT, "aux_loss": "cosine"},
        "smooth L1": {**SSKT, "aux_loss": "smooth-l1"},
        "smooth L1, alpha 10": {**SSKT, "aux_loss": "smooth-l1", "alpha": 10.0},
    },
    "transfer module": values(SSKT, "transfer_module", False, True),
    "embeddings": {
        "cosine": {"heads": "features", "aux_loss": "cosine"},
        "smooth L1": {"heads": "features", "aux_loss": "smooth-l1"},
        "smooth L1, alpha 10": {"heads": "features", "aux_loss": "smooth-l1", "alpha": 10.0},
        "smooth L1, mlp": {"heads": "features", "aux_loss": "smooth-l1", "aux_head": "mlp"},
        "smooth L1 beside the probe": {**PROBE, "heads": "features", "aux_loss": "smooth-l1"},
    },
    # added when alpha = 10 had come out best of these
    "embeddings, more": {
        **values({"heads": "features", "aux_loss": "smooth-l1"}, "alpha", 3.0, 30.0),
        "alpha 10 beside the probe": {**PROBE, "heads": "features", "aux_loss": "smooth-l1", "alpha": 10.0},
        "alpha 10, mixup 0.4": {"heads": "features", "aux_loss": "smooth-l1", "alpha": 10.0, "mixup": 0.4},
        "cosine, alpha 10": {"heads": "features", "aux_loss": "cosine", "alpha": 10.0},
    },
    "probe": {
        "of features": PROBE,
        "of logits": {"probe": "logits"},
        **values(PROBE, "probe_weight", 0.5, 0.7, 1.0),
        **values(PROBE, "probe_temperature", 2.0, 4.0),
        "own views": {**PROBE, "probe_views": "own"},
        "mixup 0.4": {**PROBE, "mixup": 0.4},
    },
    "views": values(PROBE, "views", 1, 2, 5, 10),
    "own views": values(PROBE, "views", 1, 2, 5, 10, probe_views="own"),
    "pool": values(PROBE, "pool", 0, 50, 200, 950, 1208),  # 0, 1, 4, 19, 24 times the labels
    "pool, SSKT": values(SSKT, "pool", 0, 50, 200, 950, 1208),
    "labels": values(PROBE, "per_class", 2, 5, 10, 20, 50),
    "labels, scratch": values({}, "per_class", 2, 5, 10, 20, 50),
    "share": values(PROBE, "labelled_share", None, 0.1, 0.25, 0.5, 0.75),
    "share, SSKT": values(SSKT, "labelled_share", None, 0.1, 0.25, 0.5, 0.75),
}


class Study:
    """The runs of all questions, in one folder."""

    def __init__(self, cache_dir: Path, out: Path, steps: int, seeds: range) -> None:
        self.cache_dir, self.out, self.steps, self.seeds = cache_dir, out, steps, seeds
        self.paths = Paths(cache_dir=cache_dir)
        names = [demo_sources(task, cache_dir / "demo") for task in TASKS]
        self.outputs = dict(zip(("logits", "features"), zip(*names, strict=True), strict=True))
        every = [name for outputs in self.outputs.values() for name in outputs]
        api.precompute(["digits"], every, views=VIEWS, paths=self.paths)

    def top1(self, settings: dict[str, Any], seed: int) -> float:
        """The last student's accuracy in percent; trains it if need be."""
        told = "-".join(f"{name}={value}" for name, value in settings.items()) or "scratch"
        folder = self.out / re.sub("[^a-zA-Z0-9.=_-]+", "-", f"{told}-{seed}")
        if (folder / "config.json").is_file() and read_summary(folder) is None:
            api.resume(folder, paths=self.paths)
        elif read_summary(folder) is None:
            self._train(folder, seed, **settings)
        return float((read_summary(folder) or {})["test_top1"])

    def _train(
        self,
        folder: Path,
        seed: int,
        *,
        probe: str | None = None,
        heads: str | None = None,
        pool: int = N_DIGITS,
        per_class: int = 5,
        **settings: Any,
    ) -> None:
        sources = (f"probe:{'+'.join(self.outputs[probe])}",) if probe else ()
        sources += self.outputs[heads] if heads else ()
        n_labelled = per_class * N_CLASSES
        n = min(N_DIGITS, n_labelled + (pool if sources else 0))
        if sources:
            settings = {"views": VIEWS, "labels": "cached", "sources": sources, **settings}
            if heads and settings.get("aux_loss", "ce") in LOGITS_LOSSES:
                settings.setdefault("alpha", 0.1)
            if n > n_labelled:
                settings["labels_per_class"] = per_class
        else:
            settings["method"] = "scratch"
        epochs = max(1, round(self.steps / -(-n // BATCH)))
        limit = None if n == N_DIGITS else n
        with mute_remarks():
            api.train(
                "digits",
                recipe="fast",
                limit=limit,
                epochs=epochs,
                batch_size=BATCH,
                eval_every=epochs,
                paths=self.paths,
                out=folder,
                seed=seed,
                amp="fp32",
                **settings,
            )

    def table(self, question: str) -> str:
        """The answer to a question, as Markdown."""
        runs = QUESTIONS[question]
        if any("per_class" in settings for settings in runs.values()):
            plain = {}
        else:
            plain = {"scratch, labelled digits alone": {}}
        lines = [f"\n| {question} | top-1 | by seed |\n|---|---|---|"]
        for name, settings in (plain | runs).items():
            by_seed = [self.top1(settings, seed) for seed in self.seeds]
            spread = statistics.stdev(by_seed) if len(by_seed) > 1 else 0.0
            each = ", ".join(f"{top1:.1f}" for top1 in by_seed)
            lines.append(f"| {name} | {statistics.mean(by_seed):.2f} ± {spread:.2f} % | {each} |")
        return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=list(QUESTIONS), help="a question; repeatable")
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cache-dir", type=Path, default=Path("stores"))
    parser.add_argument("--out", type=Path, default=Path("runs/settings"))
    args = parser.parse_args()
    logging.getLogger("pipeline").setLevel(logging.WARNING)
    study = Study(args.cache_dir, args.out, args.steps, range(args.seeds))
    for question in args.only or QUESTIONS:
        print(study.table(question), flush=True)


if __name__ == "__main__":
    with show_remarks():
        main()
