"""Run published rows: one precompute per target and source for all of them, finished runs skipped, stopped
ones continued.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.api.again import is_as_asked, precompute_once, train_once
from pipeline.api.lesson import Supervision
from pipeline.api.settings import Tuning
from pipeline.api.stage_one import open_index
from pipeline.choices import DEFAULT_VIEWS, Places, student_precision
from pipeline.execution import Execution
from pipeline.ranks import joined
from pipeline.reproduce.attempt import (
    TRAINING_SAMPLES,
    Attempt,
    Shrink,
    attempt_of,
    attempts,
    published_sources,
)
from pipeline.reproduce.report import Result, Scratch, write_report
from pipeline.run import RunBusyError, read_summary
from pipeline.training.trainer import DivergedError
from sskt.contract import sentence
from sskt.errors import RunError
from sskt.published import Published, published_rows
from sskt.sources import parse_source, published_digest, weights_file

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Campaign:
    """Everything that the runs of a table have in common."""

    out: Path
    places: Places
    execution: Execution
    seeds: int = 3
    shrink: Shrink = field(default_factory=Shrink)
    views: int = DEFAULT_VIEWS
    amp: str = "auto"  # of the students

    def folder(self, name: str, seed: int) -> Path:
        """Where one run lies."""
        return self.out / f"{name}-seed{seed}"


def run_reproduce(
    table: str,
    campaign: Campaign,
    *,
    rows: Sequence[str] = (),
    stand_ins: Mapping[str, str] | None = None,
    dry_run: bool = False,
    say: Say = print,
) -> list[Result]:
    """Run the chosen rows of a table with every seed, and write the report (`write_report`) to
    `campaign.out`: of these rows, and of those that calls with the same settings have run before. `dry_run`
    does nothing but say what there is to do, with the official sizes of targets.

    A run that diverges is marked, one that another process trains is left to it (so several processes, a GPU
    each, may share a table), and the others go on; of several ranks it stops all. Raises what the stages
    raise; what is done by then is kept, and the same call goes on from there.
    """
    chosen = attempts(table, rows, shrink=campaign.shrink, stand_ins=stand_ins or {})
    _require_read(campaign.places, stand_ins or {})
    for attempt in chosen:
        attempt.marks.extend(_marks(attempt, campaign))
    if dry_run:
        return _results(chosen, campaign, of_official_sizes=True)
    with joined(campaign.execution.device) as ranks:
        shown = _with_finished(table, chosen, campaign, stand_ins or {})
        for target in dict.fromkeys(attempt.row.target for attempt in chosen):
            mine = [attempt for attempt in chosen if attempt.row.target == target]
            reduced = _data_marks(target, campaign)
            for attempt in shown:
                if attempt.row.target == target:
                    attempt.marks.extend(reduced)
            _precompute(target, list(dict.fromkeys(s for a in mine for s in a.sources)), campaign, say)
        for seed in range(campaign.seeds):  # a whole table early, its spread later
            for number, attempt in enumerate(chosen, start=1):
                say(f"seed {seed}, row {number} of {len(chosen)}: {attempt.row.name}")
                try:
                    _run(attempt, seed, campaign, say)
                except (DivergedError, RunBusyError) as error:
                    if ranks.world > 1:  # the others do not know, and wait
                        raise
                    say(f"{attempt.row.name}: {error}")
                    if isinstance(error, DivergedError):
                        attempt.marks.append(f"seed {seed} diverged")
                if ranks.first:
                    write_report(table, _results(shown, campaign), campaign.out)
    return _results(chosen, campaign)


def _with_finished(
    table: str, chosen: Sequence[Attempt], campaign: Campaign, stand_ins: Mapping[str, str]
) -> list[Attempt]:
    """The chosen rows, and the others of their targets that have finished runs, in the table's order."""
    by_row = {attempt.row: attempt for attempt in chosen}
    targets = {attempt.row.target for attempt in chosen}
    shown = []
    for attempt in attempts(table, (), shrink=campaign.shrink, stand_ins=stand_ins):
        if attempt.row in by_row:
            shown.append(by_row[attempt.row])
        elif attempt.row.target in targets and _values(attempt, campaign, attempt.metric):
            attempt.marks.extend(_marks(attempt, campaign))
            shown.append(attempt)
    return shown


def _precompute(target: str, sources: Sequence[str], campaign: Campaign, say: Say) -> None:
    """Every source that any row of this target has, once."""
    if sources:
        precompute_once(
            target,
            sources,
            views=campaign.views,
            places=campaign.places.of(sources),
            execution=campaign.execution,
            limit=campaign.shrink.limit,
            say=say,
        )


def _run(attempt: Attempt, seed: int, campaign: Campaign, say: Say) -> None:
    """One run of a row, and its teacher's before it."""
    if attempt.teacher is not None:
        _run(attempt.teacher, seed, campaign, say)
        _precompute(attempt.row.target, _sources(attempt, seed, campaign), campaign, say)
    folder = campaign.folder(attempt.row.name, seed)
    train_once(attempt.row.target, folder, say=say, **_settings(attempt, seed, campaign))


def _sources(attempt: Attempt, seed: int, campaign: Campaign) -> tuple[str, ...]:
    if attempt.teacher is None:
        return attempt.sources
    return (f"run:{campaign.folder(attempt.teacher.row.name, seed)}",)


def _settings(attempt: Attempt, seed: int, campaign: Campaign) -> dict[str, Any]:
    """What `train_once` is asked for."""
    row, sources = attempt.row, _sources(attempt, seed, campaign)
    supervision = Supervision(
        method="scratch" if row.method == "finetune" else row.method,
        sources=sources,
        labels="cached" if sources else "auto",
        views=campaign.views,
        transfer_module=row.transfer_module,
        psi=row.psi or Supervision().psi,
    )
    beginning = None if row.init == "random" else _beginning(row.init, row.model, campaign.places)
    return {
        "supervision": supervision,
        "places": campaign.places.of(sources),
        "execution": campaign.execution,
        "seed": seed,
        "model": row.model,
        "limit": campaign.shrink.limit,
        "eval_every": attempt.eval_every(campaign.shrink.limit),
        "tuning": Tuning(amp=campaign.amp, finetune_from=beginning, freeze_until=attempt.freeze_until),
        "overrides": attempt.overrides,
    }


def _results(
    chosen: Sequence[Attempt], campaign: Campaign, *, of_official_sizes: bool = False
) -> list[Result]:
    """What there is so far, and what it cost with the data that are here; or, with the official sets, what
    all of it would cost.
    """
    samples: dict[str, int] = {}
    teachers: set[Path] = set()
    results = []
    for attempt in chosen:
        target = attempt.row.target
        if target not in samples:
            samples[target] = _n_samples(target, campaign, of_official_sizes)
        n = samples[target]
        forwards = {(target, name): n * campaign.views for name in attempt.sources}
        if attempt.teacher is not None:
            forwards = {
                (target, f"{attempt.teacher.row.model} of seed {seed}"): n * campaign.views
                for seed in range(campaign.seeds)
            }
        looks = len(attempt.sources) or int(attempt.teacher is not None)  # at a sample, in every epoch
        values = _values(attempt, campaign, attempt.metric)
        runs = campaign.seeds if of_official_sizes else len(values)
        left = _unfinished_teachers(attempt, campaign) - teachers
        teachers |= left
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
                live=n * attempt.epochs * runs * looks,
                teachers_left=len(left),
            )
        )
    return results


def _n_samples(target: str, campaign: Campaign, of_official_sizes: bool) -> int:
    limit = campaign.shrink.limit
    if of_official_sizes:
        return min(TRAINING_SAMPLES[target], limit or TRAINING_SAMPLES[target])
    return len(open_index(target, "train", places=campaign.places, say=lambda _: None, limit=limit))


def _values(attempt: Attempt, campaign: Campaign, metric: str) -> tuple[float, ...]:
    """What the finished runs of a row came to; those of other settings do not count."""
    summaries = (_finished(attempt, seed, campaign) for seed in range(campaign.seeds))
    return tuple(float(summary[metric]) for summary in summaries if summary is not None)


def _finished(attempt: Attempt, seed: int, campaign: Campaign) -> dict[str, Any] | None:
    """The summary of a run that came to its end with the settings of this campaign."""
    folder = campaign.folder(attempt.row.name, seed)
    summary = read_summary(folder)
    if summary is None or not is_as_asked(attempt.row.target, folder, **_settings(attempt, seed, campaign)):
        return None
    return summary


def _unfinished_teachers(attempt: Attempt, campaign: Campaign) -> set[Path]:
    """The folders of the runs that have to be there before a kd row's own."""
    teacher = attempt.teacher
    if teacher is None:
        return set()
    seeds = [seed for seed in range(campaign.seeds) if _finished(teacher, seed, campaign) is None]
    return {campaign.folder(teacher.row.name, seed) for seed in seeds}


def _scratch(attempt: Attempt, campaign: Campaign) -> Scratch | None:
    """The row of the same network without sources, which may be another table's, and its runs in the same
    folder.
    """
    row = attempt.row
    for other in published_rows():
        same = (other.target, other.model, other.init) == (row.target, row.model, row.init)
        if same and other.method in ("scratch", "finetune") and other.name != row.name:
            scratch = attempt_of(other, campaign.shrink, {})
            return Scratch(other.metric_percent, _values(scratch, campaign, attempt.metric))
    return None


def _beginning(task: str, model: str, places: Places) -> Path:
    """The weights that a fine-tuned student begins with: a local file, or the published one."""
    name = parse_source(f"{task}:{model}").name
    return weights_file(name, places.weights.get(name), places.weights_dir)


def _began_with(row: Published) -> tuple[str, ...]:
    """The name of the weights that a fine-tuned student begins with."""
    return () if row.init in ("random", "") else (parse_source(f"{row.init}:{row.model}").name,)


def _require_read(places: Places, stand_ins: Mapping[str, str]) -> None:
    """Raise RunError for weights or contracts that no published row would read: a slip of the pen."""
    known = [*published_sources(), *stand_ins.values()]
    known += [name for row in published_rows() for name in _began_with(row)]
    for option, named in (("--weights", places.weights), ("--contract", places.contracts)):
        if strange := sorted(set(named) - set(known)):
            raise RunError(
                f"{option} names {strange[0]}, the published rows have {', '.join(dict.fromkeys(known))}; "
                f"correct the name"
            )


def _marks(attempt: Attempt, campaign: Campaign) -> list[str]:
    """Of how the campaign runs a row: local weights that are not the published file, views, precision."""
    weights = campaign.places.weights
    marks = [
        f"weights of {name} are {weights[name].name}"
        for name in (*attempt.sources, *_began_with(attempt.row))
        if name in weights and not published_digest(name, weights[name])
    ]
    told = {name: campaign.places.told(name) for name in attempt.sources}
    marks += [f"{name} declared as {sentence(c)}" for name, c in told.items() if c is not None]
    marks.append(f"{campaign.views} views in turn")
    precision = student_precision(campaign.amp, campaign.execution.device)
    return [*marks, f"students compute in {precision}"] if precision != "fp32" else marks


def _data_marks(target: str, campaign: Campaign) -> list[str]:
    """That the data here are not the whole official split; --limit has a mark of its own."""
    found, official = _n_samples(target, campaign, of_official_sizes=False), TRAINING_SAMPLES[target]
    if campaign.shrink.limit is not None or found == official:
        return []
    return [f"{found:,} training samples, not the official {official:,}"]
