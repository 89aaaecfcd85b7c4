"""Run published rows: one precompute per target and source for all of them, finished runs skipped, stopped
ones continued.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.api.again import train_once
from pipeline.api.lesson import Supervision
from pipeline.api.settings import Tuning
from pipeline.api.stage_one import open_index, run_precompute
from pipeline.choices import DEFAULT_VIEWS, Places
from pipeline.execution import Execution
from pipeline.reproduce.attempt import TRAINING_SAMPLES, Attempt, Shrink, attempts
from pipeline.reproduce.report import Result, Scratch, write_report
from pipeline.run import read_config, read_summary
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
    `campaign.out`; `dry_run` does nothing but say what there is to do, with the official sizes of targets.

    Raises what the stages raise; what is done by then is kept, and the same call goes on from there.
    """
    chosen = attempts(table, rows, shrink=campaign.shrink, stand_ins=stand_ins or {})
    for attempt in chosen:
        attempt.marks.extend(_weights_marks(attempt, campaign.places))
        attempt.marks.append(f"{campaign.views} views in turn")
    if not dry_run:
        for target in dict.fromkeys(attempt.row.target for attempt in chosen):
            sources = [name for a in chosen if a.row.target == target for name in a.sources]
            _precompute(target, list(dict.fromkeys(sources)), campaign, say)
        for seed in range(campaign.seeds):  # a whole table early, its spread later
            for number, attempt in enumerate(chosen, start=1):
                say(f"seed {seed}, row {number} of {len(chosen)}: {attempt.row.name}")
                _run(attempt, seed, campaign, say)
                write_report(table, _results(chosen, campaign), campaign.out)
    return _results(chosen, campaign, of_official_sizes=dry_run)


def _precompute(target: str, sources: Sequence[str], campaign: Campaign, say: Say) -> None:
    """Every source that any row of this target has, once."""
    if sources:
        run_precompute(
            [target],
            sources,
            views=campaign.views,
            places=_with_weights_of(campaign.places, sources),
            execution=campaign.execution,
            limit=campaign.shrink.limit,
            say=say,
        )


def _run(attempt: Attempt, seed: int, campaign: Campaign, say: Say) -> None:
    row, sources = attempt.row, attempt.sources
    if attempt.teacher is not None:
        sources = (f"run:{_teacher(attempt, attempt.teacher, seed, campaign, say)}",)
        _precompute(row.target, sources, campaign, say)
    method = "scratch" if row.method == "finetune" else row.method
    supervision = Supervision(
        method=method,
        sources=sources,
        labels="cached" if sources else "auto",
        views=campaign.views,
        transfer_module=row.transfer_module,
        psi=row.psi or Supervision().psi,
    )
    beginning = None if row.init == "random" else _beginning(row.init, row.model, campaign.places)
    tuning = Tuning(amp=campaign.amp, finetune_from=beginning)
    _train(row.name, row.target, row.model, seed, supervision, tuning, attempt.overrides, campaign, say)


def _teacher(attempt: Attempt, model: str, seed: int, campaign: Campaign, say: Say) -> Path:
    """The run of a kd row's teacher, made if it is not there."""
    row = attempt.row
    name = f"teacher-{row.target}-{model}"
    overrides = {k: v for k, v in attempt.overrides.items() if k != "aux_loss"}
    scratch, tuning = Supervision(method="scratch", views=campaign.views), Tuning(amp=campaign.amp)
    _train(name, row.target, model, seed, scratch, tuning, overrides, campaign, say)
    return campaign.folder(name, seed)


def _train(
    name: str,
    target: str,
    model: str,
    seed: int,
    supervision: Supervision,
    tuning: Tuning,
    overrides: Mapping[str, Any],
    campaign: Campaign,
    say: Say,
) -> None:
    epochs = overrides.get("epochs")
    train_once(
        target,
        campaign.folder(name, seed),
        supervision=supervision,
        places=_with_weights_of(campaign.places, supervision.sources),
        execution=campaign.execution,
        say=say,
        seed=seed,
        model=model,
        limit=campaign.shrink.limit,
        eval_every=1 if epochs is None else max(1, epochs // 20),
        tuning=tuning,
        overrides=overrides,
    )


def _results(
    chosen: Sequence[Attempt], campaign: Campaign, *, of_official_sizes: bool = False
) -> list[Result]:
    """What there is so far, and what it costs: of the data that are here, or of the official sets."""
    samples: dict[str, int] = {}
    results = []
    for attempt in chosen:
        target = attempt.row.target
        if target not in samples:
            samples[target] = _n_samples(target, campaign, of_official_sizes)
        n = samples[target]
        forwards = {(target, name): n * campaign.views for name in attempt.sources}
        if attempt.teacher is not None:
            forwards = {
                (target, f"{attempt.teacher} of seed {seed}"): n * campaign.views
                for seed in range(campaign.seeds)
            }
        looks = len(attempt.sources) or int(attempt.teacher is not None)  # at a sample, in every epoch
        results.append(
            Result(
                attempt.row,
                attempt.metric,
                _values(attempt.row, attempt, campaign),
                tuple(attempt.marks),
                epochs=attempt.epochs,
                samples=n,
                sources=attempt.sources,
                scratch=_scratch(attempt, campaign),
                stored=forwards,
                live=n * attempt.epochs * campaign.seeds * looks,
            )
        )
    return results


def _n_samples(target: str, campaign: Campaign, of_official_sizes: bool) -> int:
    limit = campaign.shrink.limit
    if of_official_sizes:
        return min(TRAINING_SAMPLES[target], limit or TRAINING_SAMPLES[target])
    return len(open_index(target, "train", places=campaign.places, say=lambda _: None, limit=limit))


def _values(row: Published, attempt: Attempt, campaign: Campaign) -> tuple[float, ...]:
    """What the finished runs of a row came to, `attempt` saying how; those of other settings do not count."""
    wanted = {"epochs": attempt.epochs, "limit": campaign.shrink.limit, "views": campaign.views}
    values = []
    for seed in range(campaign.seeds):
        folder = campaign.folder(row.name, seed)
        summary = read_summary(folder)
        if summary is not None and wanted.items() <= read_config(folder).items():
            values.append(float(summary[attempt.metric]))
    return tuple(values)


def _scratch(attempt: Attempt, campaign: Campaign) -> Scratch | None:
    """The row of the same network without sources, which may be another table's, and its runs in the same
    folder.
    """
    row = attempt.row
    for other in published_rows():
        same = (other.target, other.model, other.init) == (row.target, row.model, row.init)
        if same and other.method in ("scratch", "finetune") and other.name != row.name:
            return Scratch(other.metric_percent, _values(other, attempt, campaign))
    return None


def _beginning(task: str, model: str, places: Places) -> Path:
    """The weights that a fine-tuned student begins with: a local file, or the published one."""
    name = parse_source(f"{task}:{model}").name
    return weights_file(name, places.weights.get(name), places.weights_dir)


def _with_weights_of(places: Places, sources: Sequence[str]) -> Places:
    """Without the local weights of others, which would be taken for a slip of the pen."""
    return replace(places, weights={name: path for name, path in places.weights.items() if name in sources})


def _weights_marks(attempt: Attempt, places: Places) -> list[str]:
    """Local weights that are not the published file."""
    beginning = (
        ()
        if attempt.row.init == "random"
        else (parse_source(f"{attempt.row.init}:{attempt.row.model}").name,)
    )
    return [
        f"weights of {name} are {places.weights[name].name}"
        for name in (*attempt.sources, *beginning)
        if name in places.weights and not published_digest(name, places.weights[name])
    ]
