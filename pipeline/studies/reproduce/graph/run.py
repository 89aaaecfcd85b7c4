"""Run rows of table G: for each target the pretext tasks, the teachers and their stores, as far as its rows
need them, then the students with every seed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pipeline.data import open_dataset
from pipeline.runtime import join_world, mute_remarks
from pipeline.studies.reproduce.all_clips import add_clip_scores, score_clips
from pipeline.studies.reproduce.campaign import Campaign, initial_weights_file, require_known
from pipeline.studies.reproduce.graph.marks import data_marks, marks_of, teacher_marks
from pipeline.studies.reproduce.graph.needs import Needs, is_taught, teachers_scores
from pipeline.studies.reproduce.graph.rows import CLIPS, PRETRAINED, GraphAttempt, graph_attempts
from pipeline.studies.reproduce.loop import run_rows
from pipeline.studies.reproduce.published import GRAPH
from pipeline.studies.reproduce.report import Result, Scratch, in_order, write_report
from pipeline.studies.reproduce.rows import chosen_rows
from pipeline.studies.series import matches, train_or_resume
from pipeline.train import read_summary
from sskt.errors import RunError
from sskt.students import PRETEXTS

log = logging.getLogger(__name__)


def reproduce_graph(
    campaign: Campaign, *, rows: Sequence[str], targets: Sequence[str], dry_run: bool
) -> list[Result]:
    """See `pipeline.studies.reproduce.run.reproduce`, which calls it."""
    chosen = _able(graph_attempts(campaign, rows, targets), named=bool(rows))
    require_known(campaign.paths, {})
    for attempt in chosen:
        attempt.marks.extend(marks_of(attempt))
    cited = [Result.cited(row) for row in chosen_rows(GRAPH, rows, targets) if row.is_cited]
    needs = Needs(campaign, _outputs(chosen))

    def results(of: Sequence[GraphAttempt], *, official_sizes: bool = False) -> list[Result]:
        found = _results(of, needs, campaign, official_sizes=official_sizes)
        return in_order(GRAPH, [*found, *cited])

    if dry_run:
        return results(chosen, official_sizes=True)
    with join_world(campaign.execution.device) as world:
        reported = _with_finished(chosen, needs, campaign)
        for target in dict.fromkeys(attempt.row.target for attempt in chosen):
            with mute_remarks():
                dataset = open_dataset(target, "train", paths=campaign.paths, limit=campaign.shrink.limit)
            for attempt in reported:
                if attempt.row.target == target:
                    attempt.marks.extend(data_marks(attempt, dataset))
        run_rows(
            chosen,
            campaign.seeds,
            world,
            run=lambda attempt, seed: _run(attempt, seed, needs, campaign),
            report=lambda: write_report(GRAPH, results(reported), campaign.out),
        )
    return results(chosen)


def _able(chosen: list[GraphAttempt], *, named: bool) -> list[GraphAttempt]:
    """The rows that the networks of the campaign can run. Raises RunError if one that is named is not among
    them.
    """
    left_out = [a for a in chosen if a.row.method == PRETRAINED and a.campaign.graph.small]
    if left_out and (named or len(left_out) == len(chosen)):
        raise RunError(
            f"{left_out[0].row.name} starts from torchvision's weights of the whole alexnet, and --small has "
            f"another; leave one of them out"
        )
    for attempt in left_out:
        log.info(f"{attempt.row.name} is left out: there are no pretrained weights for --small")
    return [attempt for attempt in chosen if attempt not in left_out]


def _outputs(chosen: Sequence[GraphAttempt]) -> dict[str, tuple[str, ...]]:
    """The outputs of teachers that the rows of each target learn from."""
    found: dict[str, dict[str, None]] = {}
    for attempt in chosen:
        found.setdefault(attempt.row.target, {}).update(dict.fromkeys(attempt.outputs))
    return {target: tuple(outputs) for target, outputs in found.items()}


def _run(attempt: GraphAttempt, seed: int, needs: Needs, campaign: Campaign) -> None:
    """Run a row with one seed, after what it needs; teachers alone have one score for all seeds."""
    target = attempt.row.target
    if not attempt.has_student:
        if seed == 0:
            needs.score(target)
        return
    if attempt.outputs:
        needs.precompute(target)
    folder = campaign.folder(attempt.row.name, seed)
    train_or_resume(target, folder, **_settings(attempt, seed, needs, campaign))
    score_clips(folder, campaign.paths, campaign.execution, CLIPS)


def _settings(attempt: GraphAttempt, seed: int, needs: Needs, campaign: Campaign) -> dict[str, Any]:
    """The settings passed to `train_or_resume`."""
    settings = attempt.settings(needs.teachers(attempt.row.target))
    return {
        **settings,
        "paths": campaign.paths.of(settings["sources"]),
        "seed": seed,
        "finetune_from": initial_weights_file(attempt.row, campaign.paths),
    }


def _values(attempt: GraphAttempt, needs: Needs, campaign: Campaign) -> tuple[float, ...]:
    """The metric of a row's finished runs; those with other settings do not count."""
    row = attempt.row
    if not attempt.has_student:
        if not all(is_taught(task, row.target, campaign) for task in PRETEXTS):
            return ()
        scores = teachers_scores(row.target, campaign)
        what = "fusion" if row.method == "models fusion" else "linear"
        metric = attempt.metric.removesuffix(f"_{CLIPS}_clips")
        return () if scores is None else (float(scores[what][metric]),)
    found = []
    for seed in range(campaign.seeds):
        folder = campaign.folder(row.name, seed)
        summary = read_summary(folder)  # first, since the settings may need weights that are not here yet
        if summary is None or not matches(row.target, folder, **_settings(attempt, seed, needs, campaign)):
            continue
        if (scored := add_clip_scores(summary, folder, CLIPS)) is not None:
            found.append(float(scored[attempt.metric]))
    return tuple(found)


def _with_finished(chosen: Sequence[GraphAttempt], needs: Needs, campaign: Campaign) -> list[GraphAttempt]:
    """The chosen rows, and the others of their targets that have finished runs."""
    by_row = {attempt.row: attempt for attempt in chosen}
    targets = {attempt.row.target for attempt in chosen}
    reported = []
    for attempt in graph_attempts(campaign, (), ()):
        if attempt.row in by_row:
            reported.append(by_row[attempt.row])
        elif attempt.row.target in targets and _values(attempt, needs, campaign):
            attempt.marks.extend(marks_of(attempt))
            reported.append(attempt)
    return reported


def _results(
    chosen: Sequence[GraphAttempt], needs: Needs, campaign: Campaign, *, official_sizes: bool
) -> list[Result]:
    """Results so far and what they cost on the data at hand; with `official_sizes`, what all runs would cost
    on the official splits.
    """
    results, counted, samples = [], set[str](), dict[str, int]()
    values = {attempt.row: _values(attempt, needs, campaign) for attempt in chosen}
    for attempt in chosen:
        target = attempt.row.target
        if target not in samples:
            samples[target] = campaign.n_samples(target, official_sizes=official_sizes)
        n = samples[target]
        left = 0
        if attempt.needs_teachers and target not in counted:
            counted.add(target)
            left = sum(not is_taught(task, target, campaign) for task in PRETEXTS)
        n_outputs = len(attempt.outputs)
        runs = campaign.seeds if official_sizes else len(values[attempt.row])
        stored = {(target, f"{task}'s teacher"): n * campaign.views for task in PRETEXTS} if n_outputs else {}
        marks = [*attempt.marks, *teacher_marks(attempt)]
        results.append(
            Result(
                attempt.row,
                attempt.metric,
                values[attempt.row],
                tuple(marks),
                epochs=attempt.epochs,
                samples=n,
                sources=attempt.sources([teacher_word(task) for task in PRETEXTS]),
                scratch=_scratch(attempt, needs, campaign, values),
                stored=stored,
                live=n * attempt.epochs * runs * len(PRETEXTS) if n_outputs else 0,
                teachers_left=left,
                runs=None if attempt.has_student else 0,
            )
        )
    return results


def teacher_word(task: str) -> str:
    """A teacher as the report's column of sources names it."""
    return f"{task}-teacher"


def _scratch(
    attempt: GraphAttempt, needs: Needs, campaign: Campaign, values: dict[Any, tuple[float, ...]]
) -> Scratch | None:
    """The paper's and our student from random weights, which a row's gain is measured against."""
    for row in chosen_rows(GRAPH, (), (attempt.row.target,)):
        if row.method == "alexnet random" and row != attempt.row:
            other = replace(attempt, row=row, marks=[])
            found = values[row] if row in values else _values(other, needs, campaign)
            return Scratch(row.metric_percent, found)
    return None
