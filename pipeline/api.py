"""Names in, results out: what the command line and a Python user call for either stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.choices import Augmentation, Places
from pipeline.estimate import estimate
from pipeline.evaluate import report
from pipeline.execution import Execution
from pipeline.job import Job
from pipeline.plan import Centre
from pipeline.precompute import StoreReport, precompute
from pipeline.run import Run, read_config, read_student
from pipeline.schedule import Share
from pipeline.supply import Request, open_labels
from pipeline.targets import load_index, parse_target, prepared
from pipeline.targets.index import TargetIndex
from pipeline.targets.spec import SPLITS
from pipeline.train import TrainConfig, train
from sskt.errors import RunError, TargetError
from sskt.recipes import recipe_for
from sskt.sources import open_source
from sskt.student import build_student

Say = Callable[[str], None]

_FROM_RECIPE = (
    "epochs",
    "batch_size",
    "lr",
    "milestones",
    "gamma",
    "momentum",
    "weight_decay",
    "temperature",
    "alpha",
    "aux_loss",
)


@dataclass(frozen=True, slots=True)
class Supervision:
    """How a student is taught. What is None is the recipe's."""

    method: str = "sskt"  # or "scratch"
    sources: tuple[str, ...] = ()
    labels: str = "auto"  # or "cached" or "live"
    views: int | None = None
    transfer_module: bool = False
    kd_reduction: str = "mean"  # or "batchmean"


def run_prepare(target: str, *, places: Places, say: Say) -> list[dict[str, Any]]:
    """Download a target if it can be, check every file, keep its index; one row of plain data per split."""
    rows = []
    for split in SPLITS:
        index = open_index(target, split, places=places, say=say)
        rows.append(
            {
                "target": index.target,
                "split": split,
                "samples": len(index),
                "classes": len(index.classes),
                "contents": index.content_sha256,
            }
        )
    return rows


def open_index(target: str, split: str, *, places: Places, say: Say, limit: int | None = None) -> TargetIndex:
    """The validated index of one split of a named target; what it has to remark is said."""
    index = load_index(
        parse_target(target), split, data_dir=places.data_dir, index_dir=places.index_dir, limit=limit
    )
    for note in index.notes:
        say(note)
    return index


def run_precompute(
    targets: Sequence[str],
    sources: Sequence[str],
    *,
    views: int,
    augmentation: Augmentation,
    places: Places,
    execution: Execution,
    limit: int | None,
    say: Say,
    top_k: int | None = None,
) -> list[StoreReport]:
    """Stage one for each target, or for every prepared one if none is named; see
    `pipeline.precompute.precompute`. Under torchrun the ranks share the work.
    """
    share = Share.from_environment()
    jobs = _jobs(targets, sources, views, augmentation, places, limit, top_k, say)
    return [
        report
        for job in jobs
        for report in precompute(job, cache_dir=places.cache_dir, execution=execution, share=share, say=say)
    ]


def run_estimate(
    targets: Sequence[str],
    sources: Sequence[str],
    *,
    views: int,
    augmentation: Augmentation,
    places: Places,
    execution: Execution,
    limit: int | None,
    say: Say,
    top_k: int | None = None,
) -> list[dict[str, Any]]:
    """What `run_precompute` would cost; see `pipeline.estimate.estimate`."""
    jobs = _jobs(targets, sources, views, augmentation, places, limit, top_k, say)
    return [
        {"target": job.name, **row}
        for job in jobs
        for row in estimate(job, cache_dir=places.cache_dir, execution=execution, say=say)
    ]


def _jobs(
    targets: Sequence[str],
    sources: Sequence[str],
    views: int,
    augmentation: Augmentation,
    places: Places,
    limit: int | None,
    top_k: int | None,
    say: Say,
) -> Iterator[Job]:
    """One job a target, one after the other.

    Raises TargetError, saying how to prepare one, if nothing is named and nothing is prepared.
    """
    names = list(targets) or prepared(places.data_dir)
    if not names:
        raise TargetError(
            f"no target is prepared under {places.data_dir}; `sskt prepare --target cifar10` downloads one, "
            f"and --target imagefolder:PATH takes a folder of pictures (sskt targets lists all)"
        )
    if not targets:
        say(f"targets prepared under {places.data_dir}: {', '.join(names)}")
    _require_named(places, sources)
    opened = [
        open_source(name, weights=places.weights.get(name), weights_dir=places.weights_dir)
        for name in dict.fromkeys(sources)
    ]
    for name in names:
        spec = parse_target(name)
        yield Job(
            name,
            open_index(name, "train", places=places, say=say, limit=limit),
            [(source, augmentation.input_map(spec, source.spec.mean, source.spec.std)) for source in opened],
            augmentation.training_plan(spec),
            views,
            top_k,
        )


def run_train(
    target: str,
    *,
    supervision: Supervision,
    augmentation: Augmentation,
    places: Places,
    execution: Execution,
    out: Path,
    say: Say,
    seed: int = 0,
    model: str | None = None,
    limit: int | None = None,
    student_amp: str = "fp32",
    eval_every: int = 1,
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Stage two: one student of one target, by the paper's recipe where `overrides` does not say otherwise.

    `overrides` may set epochs, batch_size, lr, milestones, gamma, momentum, weight_decay, temperature, alpha
    and aux_loss; None leaves the recipe's value. Returns the run's summary. Nothing is written to `out`
    before all inputs are known to be good.
    """
    spec, recipe = parse_target(target), recipe_for(target)
    index = open_index(target, "train", places=places, say=say, limit=limit)
    test_index = open_index(target, "test", places=places, say=say)
    plan, eval_plan = augmentation.training_plan(spec), augmentation.evaluation_plan(spec)
    labels = None
    if supervision.method == "sskt":
        _require_named(places, supervision.sources or tuple(places.weights))
        temperature = (overrides or {}).get("temperature") or recipe.temperature
        request = Request(target, spec, index, augmentation, plan, places, execution, temperature)
        labels = open_labels(
            request, supervision.sources, labels=supervision.labels, views=supervision.views, say=say
        )
    chosen = {name: value for name, value in (overrides or {}).items() if value is not None}
    settings = {name: chosen.get(name, getattr(recipe, name)) for name in _FROM_RECIPE}
    config = TrainConfig(
        target=target,
        classes=index.classes,
        model=model or recipe.models[0],
        method=supervision.method,
        sources=tuple(labels.n_classes) if labels else (),
        transfer_module=supervision.transfer_module,
        kd_reduction=supervision.kd_reduction,
        labels=labels.kind if labels else "none",
        views=labels.views if labels else supervision.views,
        seed=seed,
        limit=limit,
        eval_every=eval_every,
        amp=student_amp,
        plan=plan.to_dict(),
        eval_plan=asdict(eval_plan),
        **settings,
    )
    run = Run(out, asdict(config))
    try:
        return train(
            config,
            index,
            test_index,
            plan=plan,
            eval_plan=eval_plan,
            labels=labels,
            execution=execution,
            run=run,
            say=say,
        )
    finally:
        run.close()


def run_evaluate(run: Path, *, places: Places, execution: Execution, say: Say) -> dict[str, Any]:
    """Score a run's exported student on its target's test split, with the run's own evaluation view.

    Raises RunError if `run` is no finished run or its target has other classes by now.
    """
    config = read_config(run)
    index = open_index(config["target"], "test", places=places, say=say)
    trained, found = config["classes"], list(index.classes)
    if found != trained:
        raise RunError(
            f"{run}: was trained for {len(trained)} classes ({', '.join(trained[:3])}, ...), its target "
            f"now has {len(found)} ({', '.join(found[:3])}, ...); evaluate on the data it was trained for"
        )
    student = build_student(config["model"], len(config["classes"]), {}, transfer_module=False)
    student.load_state_dict(read_student(run))
    student.to(execution.device)
    return report(student, index, Centre(**config["eval_plan"]), execution, config["amp"])


def _require_named(places: Places, sources: Sequence[str]) -> None:
    """Local weights that no source of this run would read are a slip of the pen."""
    strange = sorted(set(places.weights) - set(sources))
    if strange:
        raise RunError(
            f"--weights names {strange[0]}, this run's sources are {', '.join(sources)}; "
            f"give it under the name of one of them, or leave it out"
        )
