"""`sskt demo`: both stages on real handwritten digits with few labels, by the same code as any other target.

Trains the same student in three ways, over several seeds: from scratch, with cached source logits, and with
live sources on the same views. Cached and live should agree in accuracy and differ in cost; the figures show
how much the sources help.
"""

from __future__ import annotations

import json
import logging
import statistics
from pathlib import Path
from time import perf_counter
from typing import Any

from pipeline.data.augmentation import Augmentation
from pipeline.precompute.run import precompute
from pipeline.runtime import Paths, choose_execution, mute_remarks
from pipeline.studies.demo_sources import demo_source
from pipeline.train.run import train
from pipeline.train.run_folder import read_metrics

log = logging.getLogger(__name__)

N_LABELS = 100
VIEWS = 10
TASKS = ("letters", "strokes")
METHODS = ("scratch", "SSKT cached", "SSKT live")


def run_demo(*, cache_dir: Path, out: Path, seeds: int, threads: int | None) -> dict[str, Any]:
    """Run the demo in the folder `out`; returns its figures, with the printed table under "table"."""
    started = perf_counter()
    sources = tuple(f"program:{demo_source(task, cache_dir / 'demo')}" for task in TASKS)
    sources_s = perf_counter() - started
    log.info(f"sources: letters and strokes, ready after {sources_s:.0f} s")
    paths = Paths(data_dir=Path("data"), cache_dir=cache_dir)
    execution = choose_execution(device="cpu", amp="fp32", renderer="auto", threads=threads)
    precompute_started = perf_counter()
    reports = precompute(
        ["digits"],
        sources,
        views=VIEWS,
        augmentation=Augmentation(),
        paths=paths,
        execution=execution,
        limit=N_LABELS,
    )
    precompute_s = perf_counter() - precompute_started
    forwards = sum(report.rows_done for report in reports)
    log.info(f"stage one: {forwards:,} forwards of the sources in {precompute_s:.1f} s")
    taught: dict[str, dict[str, Any]] = {
        "scratch": {"method": "scratch"},
        "SSKT cached": {"sources": sources, "labels": "cached"},
        "SSKT live": {"sources": sources, "labels": "live"},
    }
    runs: dict[str, list[Path]] = {method: [] for method in METHODS}
    for seed in range(seeds):
        for method, settings in taught.items():
            folder = out / f"{method.lower().replace(' ', '-')}-seed{seed}"
            with mute_remarks():
                train(
                    "digits",
                    augmentation=Augmentation(),
                    paths=paths,
                    execution=execution,
                    out=folder,
                    seed=seed,
                    limit=N_LABELS,
                    eval_every=5,
                    amp="fp32",
                    views=VIEWS,
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
        "epoch_s": statistics.median(metrics["epoch_s"] for metrics in epochs),
        "label_s": statistics.median(metrics["label_s"] for metrics in epochs),
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
    cached, live = rows[1], rows[2]
    n_epochs = sum(len(read_metrics(path)) for path in runs["SSKT cached"])
    saved_s = n_epochs * (live["label_s"] - cached["label_s"]) - precompute_s
    table = _table(rows)
    remarks = (
        f"teacher time: {n_epochs} epochs asked the live sources for {n_epochs * live['label_s']:.1f} s, "
        f"the cached ones took {n_epochs * cached['label_s']:.1f} s and {precompute_s:.1f} s once: "
        f"{saved_s:.1f} s saved, and {live['epoch_s'] / cached['epoch_s']:.1f} x less time per epoch"
    )
    figures = {
        "rows": rows,
        "teacher_s_saved": saved_s,
        "sources_s": sources_s,
        "precompute_s": precompute_s,
        "wall_s": wall_s,
    }
    image = _plot(runs, out / "curves.png")
    title, shown = f"# Handwritten digits, {N_LABELS} labels", "![test accuracy by epoch](curves.png)"
    text = f"{title}\n\n```\n{table}\n```\n\n{remarks}\n\n{shown}\n"
    (out / "report.md").write_text(text, encoding="utf-8")
    (out / "report.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    printed = f"\n{table}\n\n{remarks}\n{wall_s:.0f} s in all\n{image}\n{out / 'report.md'}"
    return {**figures, "table": printed}


def _table(rows: list[dict[str, Any]]) -> str:
    head = f"{'digits, 100 labels':<20}{'test top-1 %':>18}{'s / epoch':>12}{'of it logits':>15}"
    lines = []
    for row in rows:
        spread = "" if row["spread"] is None else f"± {row['spread']:.2f}"
        seconds = f"{row['epoch_s']:>12.3f}{row['label_s']:>15.3f}"
        lines.append(f"{row['method']:<20}{row['top1']:>10.2f} {spread:<7}{seconds}")
    n = rows[0]["seeds"]
    return "\n".join([head, *lines, f"mean and standard deviation over {n} seeds" if n > 1 else "one seed"])


def _plot(runs: dict[str, list[Path]], path: Path) -> Path:
    """Plot test accuracy by epoch: the mean over seeds, and their range as a band."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for (method, paths), colour, style in zip(
        runs.items(), ("#777777", "#0b6e99", "#d9730d"), ("-", "-", "--"), strict=True
    ):
        histories = [[m for m in read_metrics(p) if "test_top1" in m] for p in paths]
        epochs = [m["epoch"] for m in histories[0]]
        by_epoch = list(zip(*[[m["test_top1"] for m in history] for history in histories], strict=True))
        axes.plot(
            epochs, [statistics.mean(v) for v in by_epoch], style, color=colour, label=method, linewidth=1.8
        )
        axes.fill_between(
            epochs, [min(v) for v in by_epoch], [max(v) for v in by_epoch], color=colour, alpha=0.15
        )
    axes.set(
        xlabel="epoch", ylabel="test top-1 (%)", title=f"Handwritten digits, {N_LABELS} labels, ResNet20"
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    return path
