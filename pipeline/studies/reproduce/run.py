"""Run published rows: one precompute per target and source, finished runs skipped, stopped ones resumed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.data import open_dataset
from pipeline.runtime import coerce, join_world, mute_remarks
from pipeline.studies.reproduce.all_clips import ALL_CLIPS_METRIC, add_all_clips, score_all_clips
from pipeline.studies.reproduce.campaign import (
    Campaign,
    campaign_marks,
    initial_weights_file,
    require_distinct,
    require_known,
)
from pipeline.studies.reproduce.marks import Mark
from pipeline.studies.reproduce.published import published_rows
from pipeline.studies.reproduce.report import Result, Scratch, write_report
from pipeline.studies.reproduce.rows import (
    TRAINING_SAMPLES,
    Attempt,
    attempt_of,
    attempts,
    chosen_rows,
    is_headless,
)
from pipeline.studies.series import matches, precompute_once, train_or_resume
from pipeline.train.divergence import DivergedError
from pipeline.train.run_folder import RunBusyError, read_summary

log = logging.getLogger(__name__)


def reproduce(
    table: str,
    campaign: Campaign,
    *,
    rows: str | Sequence[str] = (),
    stand_ins: Mapping[str, str] | None = None,
    dry_run: bool = False,
) -> list[Result]:
    """Run the chosen rows of a table with every seed, and write the report (`write_report`) to
    `campaign.out`: these rows, and those that earlier calls with the same settings have run. `dry_run` only
    returns what there is to do, by the targets' official sizes. Rows that the table cites from other papers
    are shown but never run.

    A run that diverges is marked, one that another process is training is left to it (so several processes,
    one GPU each, may share a table), and the others continue; with several ranks either stops all. Raises
    whatever the stages raise; finished work is kept, and the same call continues from there.
    """
    rows = coerce.texts(rows, "rows")
    chosen = attempts(table, rows, shrink=campaign.shrink, stand_ins=stand_ins or {})
    require_known(campaign.paths, stand_ins or {})
    require_distinct(chosen)
    for attempt in chosen:
        attempt.marks.extend(campaign_marks(attempt, campaign))
    cited = [Result.cited(row) for row in chosen_rows(table, rows) if row.is_cited]

    def results(of: Sequence[Attempt]) -> list[Result]:
        return _in_order(table, [*_results(of, campaign, official_sizes=dry_run), *cited])

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
        for seed in range(campaign.seeds):  # every row once before any second seed
            for number, attempt in enumerate(chosen, start=1):
                log.info(f"seed {seed}, row {number} of {len(chosen)}: {attempt.row.name}")
                try:
                    _run(attempt, seed, campaign)
                except (DivergedError, RunBusyError) as error:
                    if world.size > 1:  # the other ranks would wait for this one
                        raise
                    log.info(f"{attempt.row.name}: {error}")
                    if isinstance(error, DivergedError):
                        attempt.marks.append(Mark("diverged", f"seed {seed} diverged"))
                if world.is_first:
                    write_report(table, results(reported), campaign.out)
        if world.is_first and not chosen:
            write_report(table, results(reported), campaign.out)
    return results(chosen)


def _in_order(table: str, results: Sequence[Result]) -> list[Result]:
    """The results in the table's order."""
    place = {row: number for number, row in enumerate(published_rows(table))}
    return sorted(results, key=lambda result: place[result.row])


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
        score_all_clips(folder, campaign.paths, campaign.execution)


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
            samples[target] = _n_samples(target, campaign, official_sizes)
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


def _n_samples(target: str, campaign: Campaign, official_sizes: bool) -> int:
    limit = campaign.shrink.limit
    if official_sizes:
        return min(TRAINING_SAMPLES[target], limit or TRAINING_SAMPLES[target])
    with mute_remarks():
        return len(open_dataset(target, "train", paths=campaign.paths, limit=limit))


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
    return add_all_clips(summary, folder) if attempt.metric == ALL_CLIPS_METRIC else summary


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
    n, official = _n_samples(target, campaign, official_sizes=False), TRAINING_SAMPLES[target]
    if campaign.shrink.limit is not None or n == official:
        return []
    return [Mark("data", f"{n:,} training samples, not the official {official:,}")]
