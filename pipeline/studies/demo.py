"""`sskt demo`: both stages on real handwritten digits, of which 50 have labels, by the same code as any
other target.

The same student is trained as many steps in every way: from scratch; with stored source logits; with live
sources on the same views, which say the same and cost more; and with a probe of the stored
features that also teaches the digits without labels.
"""

from __future__ import annotations

import json
import logging
import re
import statistics
from pathlib import Path
from time import perf_counter
from typing import Any

from pipeline.precompute.run import precompute
from pipeline.runtime import Paths, choose_execution, mute_remarks
from pipeline.studies.demo_sources import demo_sources
from pipeline.train import read_metrics, train

log = logging.getLogger(__name__)

PER_CLASS, N_LABELS = 5, 50
VIEWS = 5
TASKS = ("letters", "strokes")
PROBE = "probe, unlabelled"
METHODS = ("scratch", "SSKT", "SSKT live", PROBE)
ONE_SEED = ("SSKT live",)  # it costs more, and differs from SSKT by rounding alone
EPOCHS, EPOCHS_ON_ALL = 120, 6  # 240 steps: two an epoch of labelled digits, forty of all


def run_demo(*, cache_dir: Path, out: Path, seeds: int, threads: int | None) -> dict[str, Any]:
    """Run the demo in the folder `out`; returns its figures, with the printed table under "table"."""
    started = perf_counter()
    names = [demo_sources(task, cache_dir / "demo") for task in TASKS]
    logits, features = (tuple(outputs) for outputs in zip(*names, strict=True))
    sources_s = perf_counter() - started
    log.info(f"sources: letters and strokes, ready after {sources_s:.0f} s")
    paths = Paths(data_dir=Path("data"), cache_dir=cache_dir)
    execution = choose_execution(device="cpu", amp="fp32", renderer="auto", threads=threads)
    precompute_started = perf_counter()
    reports = precompute(["digits"], logits + features, views=VIEWS, paths=paths, execution=execution)
    precompute_s = perf_counter() - precompute_started
    forwards = sum(report.rows_done for report in reports)
    log.info(f"stage one: {forwards:,} forwards of the sources in {precompute_s:.1f} s")
    few = {"limit": N_LABELS, "epochs": EPOCHS, "eval_every": EPOCHS // 6}
    taught: dict[str, dict[str, Any]] = {
        "scratch": {"method": "scratch", **few},
        "SSKT": {"sources": logits, "labels": "cached", "views": VIEWS, **few},
        "SSKT live": {"sources": logits, "labels": "live", "views": VIEWS, **few},
        PROBE: {
            "sources": (*logits, f"probe:{'+'.join(features)}"),
            "labels": "cached",
            "labels_per_class": PER_CLASS,
            "epochs": EPOCHS_ON_ALL,
            "eval_every": EPOCHS_ON_ALL // 6,
        },
    }
    runs: dict[str, list[Path]] = {method: [] for method in METHODS}
    for seed in range(seeds):
        for method, settings in taught.items():
            if seed and method in ONE_SEED:
                continue
            folder = out / f"{re.sub('[ ,]+', '-', method.lower())}-seed{seed}"
            with mute_remarks():
                train(
                    "digits",
                    recipe="fast",
                    paths=paths,
                    execution=execution,
                    out=folder,
                    seed=seed,
                    amp="fp32",
                    **settings,
                )
            runs[method].append(folder)
            log.info(
                f"seed {seed}, {method}: {read_metrics(folder)[-1]['test_top1']:.1f} % of the test digits"
            )
    rows = [_row(method, [read_metrics(run) for run in done]) for method, done in runs.items()]
    return _report(
        rows, runs, out, sources_s=sources_s, precompute_s=precompute_s, wall_s=perf_counter() - started
    )


def _row(method: str, histories: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Mean and standard deviation of the final accuracy, and median seconds."""
    accuracies = [history[-1]["test_top1"] for history in histories]
    epochs = [metrics for history in histories for metrics in history]
    return {
        "method": method,
        "seeds": len(histories),
        "top1": statistics.mean(accuracies),
        "spread": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "train_s": sum(metrics["epoch_s"] for metrics in epochs) / len(histories),
        "label_s": sum(metrics["label_s"] for metrics in epochs) / len(histories),
    }


def _report(
    rows: list[dict[str, Any]],
    runs: dict[str, list[Path]],
    out: Path,
    *,
    sources_s: float,
    precompute_s: float,
    wall_s: float,
) -> dict[str, Any]:
    """Write curves.png, report.md and report.json; returns the figures and the table."""
    scratch, cached, live, probe = rows
    table = _table(rows)
    remarks = (
        f"stage one took {precompute_s:.1f} s, once. From then on a student hears its sources for "
        f"{cached['label_s']:.2f} s of {cached['train_s']:.1f} s; live, for {live['label_s']:.1f} s of "
        f"{live['train_s']:.1f} s. {_gain(probe, scratch)}"
    )
    figures = {
        "rows": rows,
        "sources_s": sources_s,
        "precompute_s": precompute_s,
        "wall_s": wall_s,
    }
    image = _plot(runs, out / "curves.png")
    title, shown = (
        f"# Handwritten digits, {N_LABELS} labels",
        "![test accuracy over the training](curves.png)",
    )
    text = f"{title}\n\n```\n{table}\n```\n\n{remarks}\n\n{shown}\n"
    (out / "report.md").write_text(text, encoding="utf-8")
    (out / "report.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    printed = f"\n{table}\n\n{remarks}\n{wall_s:.0f} s in all\n{image}\n{out / 'report.md'}"
    return {**figures, "table": printed}


def _gain(row: dict[str, Any], scratch: dict[str, Any]) -> str:
    """What a method gains over scratch, in words that the spread bears."""
    gain = row["top1"] - scratch["top1"]
    said = f"{row['method']}: {gain:+.1f} points over scratch"
    if row["spread"] is None:
        return f"{said}, of one seed."
    return f"{said}, {'beyond' if gain > row['spread'] + scratch['spread'] else 'within'} the spread."


def _table(rows: list[dict[str, Any]]) -> str:
    title = f"digits, {N_LABELS} labels"
    head = f"{title:<20}{'seeds':>7}{'test top-1 %':>18}{'s / student':>13}{'of it sources':>15}"
    lines = []
    for row in rows:
        spread = "" if row["spread"] is None else f"± {row['spread']:.2f}"
        seconds = f"{row['train_s']:>13.1f}{row['label_s']:>15.2f}"
        lines.append(f"{row['method']:<20}{row['seeds']:>7}{row['top1']:>10.2f} {spread:<7}{seconds}")
    return "\n".join([head, *lines, "mean and standard deviation over seeds; as many steps in every row"])


def _plot(runs: dict[str, list[Path]], path: Path) -> Path:
    """Plot test accuracy over the training: the mean over seeds, and their range as a band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for (method, paths), colour, style in zip(
        runs.items(), ("#777777", "#0b6e99", "#d9730d", "#2e7d32"), ("-", "-", "--", "-"), strict=True
    ):
        histories = [[m for m in read_metrics(p) if "test_top1" in m] for p in paths]
        steps = [100 * m["epoch"] / histories[0][-1]["epoch"] for m in histories[0]]
        by_epoch = list(zip(*[[m["test_top1"] for m in history] for history in histories], strict=True))
        axes.plot(
            steps, [statistics.mean(v) for v in by_epoch], style, color=colour, label=method, linewidth=1.8
        )
        axes.fill_between(
            steps, [min(v) for v in by_epoch], [max(v) for v in by_epoch], color=colour, alpha=0.15
        )
    axes.set(
        xlabel="% of the training steps",
        ylabel="test top-1 (%)",
        title=f"Handwritten digits, {N_LABELS} labels, ResNet20",
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    return path
