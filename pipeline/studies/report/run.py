"""One page about one run: figures, curves, what its student confuses, and what taught it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from cache import CacheError, Location
from pipeline.runtime import Execution, Paths, choose_execution, coerce
from pipeline.studies.report import figures, runs
from pipeline.studies.report.page import write_page
from pipeline.studies.report.scored import score
from pipeline.studies.report.taught import taught
from pipeline.train import (
    EVALUATION_CLIPS,
    TrainConfig,
    open_finished,
    open_to_score,
    read_metrics,
    read_summary,
)
from sskt.errors import SsktError, shown

log = logging.getLogger(__name__)
T = TypeVar("T")


def report(
    run: Location | str,
    *,
    out: Location | str | None = None,
    paths: Paths | None = None,
    target: str | None = None,
    execution: Execution | None = None,
    which: str = "last",
    clips: int | str = EVALUATION_CLIPS,
) -> Location:
    """Write one page of HTML about a run, `out` (default: report.html in its folder), and return its path.

    The student, "last" or "best", is asked about the test split; data and stores are expected where they
    were, in `paths`, or where `target` says. Where they are missing, or the run has not finished, the page
    goes without the sections that need them and says why. Raises RunError if `run` is none, or the page
    cannot be written.
    """
    finished = open_finished(run, clips)
    folder, config, how = finished.folder, finished.config, execution or choose_execution()
    out = folder / "report.html" if out is None else coerce.place(out, "out")
    metrics = read_metrics(folder)
    missing: list[str] = []

    def scored() -> dict[str, Any]:
        dataset, student = open_to_score(finished, which=which, target=target, paths=paths, execution=how)
        return score(dataset, student, finished.plan, config.amp, how)

    of_sources = None
    if config.sources:
        of_sources = _unless_missing(
            "what taught it", lambda: taught(folder, config, metrics, paths=paths, target=target), missing
        )
    write_page(
        out,
        "run.html",
        title=shown(folder.absolute().name),
        facts=_facts(folder, config, metrics),
        curves=_curves(metrics),
        scored=_unless_missing("the test split", scored, missing),
        which=which,
        sources=of_sources,
        label_share=metrics[-1]["label_s"] / metrics[-1]["epoch_s"] if metrics else None,
        overridden={name: tuple(map(runs.text_of, pair)) for name, pair in _overridden(config).items()},
        settings={name: shown(runs.text_of(value)) for name, value in config.to_dict().items()},
        missing=missing,
    )
    for sentence in missing:
        log.warning(sentence)
    return out


def _unless_missing(what: str, make: Callable[[], T], missing: list[str]) -> T | None:
    """A part of the page; if what it needs is not there, None, and a sentence in `missing`."""
    try:
        return make()
    except (SsktError, CacheError) as error:
        missing.append(f"the page goes without {what}: {error}")
        return None


def _overridden(config: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """The settings that are not the recipe's; a pretext task has no recipe."""
    try:
        return config.overridden
    except SsktError:
        return {}


def _facts(folder: Location, config: TrainConfig, metrics: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What came out, and of what, in a few words each."""
    summary = read_summary(folder) or {}
    facts = {
        _words(name): f"{value:.2f} %"
        for name, value in (summary or (metrics[-1] if metrics else {})).items()
        if name.removeprefix("best_").startswith(("test_", "val_")) and name.endswith(("top1", "top5", "map"))
    }
    done = f"{len(metrics)} of {config.epochs}" + ("" if summary else ", not finished")
    return {
        **facts,
        "target": shown(config.target),
        "student": config.model,
        "method": config.method,
        "sources": shown(", ".join(config.sources)) or "none",
        "labels": config.labels,
        "seed": str(config.seed),
        "epochs": done,
        **({"seconds per epoch": f"{summary['epoch_s']:.1f}"} if "epoch_s" in summary else {}),
    }


def _words(name: str) -> str:
    return name.replace("_", " ").replace("top1", "top-1").replace("top5", "top-5").replace("map", "mAP")


def _curves(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Pictures of what changed over the epochs."""
    names = list(dict.fromkeys(name for each in metrics for name in each))
    losses = [name for name in names if "loss" in name]
    rights = [name for name in names if name.endswith(("top1", "map"))]
    kinds = (
        ("loss", "loss, log scale", losses, True),
        ("accuracy", "percent", rights, False),
        ("learning rate", "learning rate", ["lr"], False),
    )
    found = []
    for title, ylabel, of_kind, is_log in kinds:
        series = figures.series_of(metrics, of_kind)
        if series:
            positive = is_log and all(value > 0 for _, values in series.values() for value in values)
            uri = figures.curves(series, ylabel=ylabel if positive else ylabel.split(",")[0], log=positive)
            found.append({"title": title, "uri": uri})
    return found
