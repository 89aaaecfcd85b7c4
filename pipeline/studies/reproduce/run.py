"""Run published rows: one precompute per target and source, finished runs skipped, stopped ones resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.runtime import coerce, join_world
from pipeline.studies.reproduce.all_clips import ALL_CLIPS_METRIC, add_clip_scores, score_clips
from pipeline.studies.reproduce.campaign import (
    Campaign,
    GraphSettings,
    campaign_marks,
    initial_weights_file,
    require_distinct,
    require_known,
)
from pipeline.studies.reproduce.graph.run import reproduce_graph
from pipeline.studies.reproduce.loop import run_rows
from pipeline.studies.reproduce.marks import Mark
from pipeline.studies.reproduce.published import GRAPH, published_rows
from pipeline.studies.reproduce.report import Result, Scratch, in_order, write_report
from pipeline.studies.reproduce.rows import (
    TRAINING_SAMPLES,
    Attempt,
    attempt_of,
    attempts,
    chosen_rows,
    is_headless,
)
from pipeline.studies.series import matches, precompute_once, train_or_resume
from pipeline.train import read_summary
from sskt.errors import RunError


def reproduce(
    table: str,
    campaign: Campaign,
    *,
    rows: str | Sequence[str] = (),
    targets: str | Sequence[str] = (),
    stand_ins: Mapping[str, str] | None = None,
    dry_run: bool = False,
) -> list[Result]:
    """Run the chosen rows of a table with every seed, and write the report (`write_report`) to
    `campaign.out`: these rows, and those that earlier calls with the same settings have run; `targets` are
    those of the rows, by default all. `dry_run` only returns what there is to do, by the targets' official
    sizes. Rows that the table cites from other papers are shown but never run.

    A run that diverges is marked, one that another process is training is left to it (so several processes,
    one GPU each, may share a table), and the others continue; with several ranks either stops all. Raises
    whatever the stages raise; finished work is kept, and the same call continues from there.
    """
    rows, targets = coerce.texts(rows, "rows"), coerce.texts(targets, "targets")
    if table == GRAPH:
        _require_none(stand_ins)
        return reproduce_graph(campaign, rows=rows, targets=targets, dry_run=dry_run)
    if campaign.graph != GraphSettings():
        raise RunError(
            f"--pretext-epochs, --size and --small are of table {GRAPH}, this is table {table}; leave them "
            "out"
        )
    chosen = attempts(table, rows, shrink=campaign.shrink, stand_ins=stand_ins or {}, targets=targets)
    require_known(campaign.paths, stand_ins or {})
    require_distinct(chosen)
    for attempt in chosen:
        attempt.marks.extend(campaign_marks(attempt, campaign))
    cited = [Result.cited(row) for row in chosen_rows(table, rows, targets) if row.is_cited]

    def results(of: Sequence[Attempt]) -> list[Result]:
        return in_order(table, [*_results(of, campaign, official_sizes=dry_run), *cited])

    if dry_run:
        return results(chosen)
    with join_world(campaign.execution.device) as world:
        reported = _with_finished(table, chosen, campaign, stand_ins or {}) if chosen else []
        for target in dict.fromkeys(attempt.row.target for attempt in chosen):
            mine = [attempt for attempt in chosen if attempt.row.target == target]
            reduced = _data_marks(target, campaign)
            for attempt in reported:
                if attempt.row.target == target:
                    attempt.marks.extend(reduced)
            _precompute(target, list(dict.fromkeys(s for a in mine for s in a.sources)), campaign)
        run_rows(
            chosen,
            campaign.seeds,
            world,
            run=lambda attempt, seed: _run(attempt, seed, campaign),
            report=lambda: write_report(table, results(reported), campaign.out),
        )
    return results(chosen)


def _require_none(stand_ins: Mapping[str, str] | None) -> None:
    if stand_ins:
        raise RunError(
            f"--stand-in names {next(iter(stand_ins))}, and the teachers of table {GRAPH} are trained by "
            f"itself; leave it out"
        )


def _with_finished(
    table: str, chosen: Sequence[Attempt], campaign: Campaign, stand_ins: Mapping[str, str]
) -> list[Attempt]:
    """The chosen rows, and the others of their targets that have finished runs, in the table's order."""
    by_row = {attempt.row: attempt for attempt in chosen}
    targets = {attempt.row.target for attempt in chosen}
    reported = []
    for row in chosen_rows(table, ()):
        if row in by_row:
            reported.append(by_row[row])
            continue
        if row.is_cited or row.target not in targets or is_headless(row, stand_ins):
            continue
        attempt = attempt_of(row, campaign.shrink, stand_ins)
        if _values(attempt, campaign, attempt.metric):
            attempt.marks.extend(campaign_marks(attempt, campaign))
            reported.append(attempt)
    return reported


def _precompute(target: str, sources: Sequence[str], campaign: Campaign) -> None:
    """Precompute the sources of one target's rows."""
    if sources:
        precompute_once(
            target,
            sources,
            views=campaign.views,
            paths=campaign.paths.of(sources),
            execution=campaign.execution,
            limit=campaign.shrink.limit,
        )


def _run(attempt: Attempt, seed: int, campaign: Campaign) -> None:
    """Run a row with one seed, after its teacher if it has one."""
    if attempt.teacher is not None:
        _run(attempt.teacher, seed, campaign)
        _precompute(attempt.row.target, _sources(attempt, seed, campaign), campaign)
    folder = campaign.folder(attempt.row.name, seed)
    train_or_resume(attempt.row.target, folder, **_settings(attempt, seed, campaign))
    if attempt.metric == ALL_CLIPS_METRIC:
        score_clips(folder, campaign.paths, campaign.execution)


def _sources(attempt: Attempt, seed: int, campaign: Campaign) -> tuple[str, ...]:
    if attempt.teacher is None:
        return attempt.sources
    return (f"run:{campaign.folder(attempt.teacher.row.name, seed)}",)


def _settings(attempt: Attempt, seed: int, campaign: Campaign) -> dict[str, Any]:
    """The settings passed to `train_or_resume`."""
    row, sources = attempt.row, _sources(attempt, seed, campaign)
    return {
        **attempt.settings(sources, campaign.views),
        "paths": campaign.paths.of(sources),
        "execution": campaign.execution,
        "seed": seed,
        "model": row.model,
        "limit": campaign.shrink.limit,
        "eval_every": attempt.eval_every(campaign.shrink.limit),
        "amp": campaign.amp,
        "finetune_from": initial_weights_file(row, campaign.paths),
    }


def _results(chosen: Sequence[Attempt], campaign: Campaign, *, official_sizes: bool = False) -> list[Result]:
    """Results so far and what they cost on the data at hand; with `official_sizes`, what all runs would cost
    on the official splits.
    """
    samples: dict[str, int] = {}
    teachers: set[Path] = set()
    results = []
    for attempt in chosen:
        target = attempt.row.target
        if target not in samples:
            samples[target] = campaign.n_samples(target, official_sizes=official_sizes)
        n = samples[target]
        forwards = {(target, name): n * campaign.views for name in attempt.networks}
        if attempt.teacher is not None:
            forwards = {
                (target, f"{attempt.teacher.row.model} of seed {seed}"): n * campaign.views
                for seed in range(campaign.seeds)
            }
        n_teachers = len(attempt.networks) or int(attempt.teacher is not None)
        values = _values(attempt, campaign, attempt.metric)
        runs = campaign.seeds if official_sizes else len(values)
        unfinished = _unfinished_teachers(attempt, campaign) - teachers
        teachers |= unfinished
        results.append(
            Result(
                attempt.row,
                attempt.metric,
                values,
                tuple(attempt.marks),
                epochs=attempt.epochs,
                samples=n,
                sources=attempt.sources,
                scratch=_scratch(attempt, campaign),
                stored=forwards,
                live=n * attempt.epochs * runs * n_teachers,
                teachers_left=len(unfinished),
            )
        )
    return results


def _values(attempt: Attempt, campaign: Campaign, metric: str) -> tuple[float, ...]:
    """The metric of a row's finished runs; runs with other settings do not count."""
    summaries = (_finished(attempt, seed, campaign) for seed in range(campaign.seeds))
    return tuple(float(summary[metric]) for summary in summaries if summary is not None)


def _finished(attempt: Attempt, seed: int, campaign: Campaign) -> dict[str, Any] | None:
    """The summary of a run that finished with this campaign's settings, else None."""
    folder = campaign.folder(attempt.row.name, seed)
    summary = read_summary(folder)  # first, since the settings may need weights that are not here yet
    if summary is None or not matches(attempt.row.target, folder, **_settings(attempt, seed, campaign)):
        return None
    return add_clip_scores(summary, folder) if attempt.metric == ALL_CLIPS_METRIC else summary


def _unfinished_teachers(attempt: Attempt, campaign: Campaign) -> set[Path]:
    """The folders of the unfinished runs that a kd row depends on."""
    teacher = attempt.teacher
    if teacher is None:
        return set()
    seeds = [seed for seed in range(campaign.seeds) if _finished(teacher, seed, campaign) is None]
    return {campaign.folder(teacher.row.name, seed) for seed in seeds}


def _scratch(attempt: Attempt, campaign: Campaign) -> Scratch | None:
    """The row of the same network without sources, possibly of another table, and its runs in this folder."""
    row = attempt.row
    for other in published_rows():
        same = (other.target, other.model, other.init) == (row.target, row.model, row.init)
        if same and other.method in ("scratch", "finetune") and other.name != row.name:
            scratch = attempt_of(other, campaign.shrink, {})
            return Scratch(other.metric_percent, _values(scratch, campaign, attempt.metric))
    return None


def _data_marks(target: str, campaign: Campaign) -> list[Mark]:
    """A mark if the data are not the whole official split; --limit has its own mark."""
    n, official = campaign.n_samples(target, official_sizes=False), TRAINING_SAMPLES[target]
    if campaign.shrink.limit is not None or n == official:
        return []
    return [Mark("data", f"{n:,} training samples, not the official {official:,}")]
