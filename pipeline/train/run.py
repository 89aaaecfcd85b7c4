"""Stage two by name: start a run, or continue one that was stopped, to the numbers that it would have had
anyway.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from cache import Location
from pipeline.data import NO_POOL, Augmentation
from pipeline.runtime import Execution, Paths, World, choose_execution, coerce, join_world
from pipeline.train.backbone import (
    default_model,
    open_backbone,
    reopen_backbone,
    require_reads,
    require_runs,
    take_module,
)
from pipeline.train.config import Settings, TrainConfig
from pipeline.train.data import TrainingData, open_data
from pipeline.train.kernel_check import require_kernels, with_plain_layers
from pipeline.train.loop import kernels, run_epochs
from pipeline.train.method import open_method, require_learnable
from pipeline.train.presets import makes_probe
from pipeline.train.published_weights import first_weights
from pipeline.train.resolve import resolve
from pipeline.train.run_folder import (
    Run,
    has_student,
    is_run,
    read_checkpoint,
    read_config,
    read_probe,
    read_summary,
)
from pipeline.train.same_settings import require_settings
from pipeline.train.settle import declared_of, settle
from pipeline.train.splits import Splits, pool_key
from pipeline.train.trackers import OnEpoch, Tracker, open_trackers
from pipeline.train.whereabouts import (
    initial_weights_of,
    labelled_list_of,
    pools_to_record,
    require_classes,
    require_contents,
    require_stores,
    to_record,
    unlabelled_of,
    whereabouts_of,
)
from sskt.errors import RunError
from sskt.methods import Method
from sskt.recipes import BY_SIZE, recipe_for
from sskt.students import AveragedStudent, Backbone, Wrappable, load_pretrained

log = logging.getLogger(__name__)

_SAME_DATA = "continue it with the data that it was started with"


def train(
    target: str,
    *,
    out: Location | str,
    model: str | Wrappable | None = None,
    augmentation: Augmentation | None = None,
    paths: Paths | None = None,
    execution: Execution | None = None,
    seed: int = 0,
    limit: int | None = None,
    eval_every: int = 1,
    finetune_from: Location | str | None = None,
    pretrained: bool = False,
    trackers: str | Tracker | Sequence[str | Tracker] = (),
    on_epoch: OnEpoch | None = None,
    **settings: Unpack[Settings],
) -> dict[str, Any]:
    """Stage two: train one student on one target, by the paper's recipe unless `settings` say otherwise.

    `model` is a name, your own backbone, which keeps its weights (`sskt.students.WrappedBackbone` makes one
    of any module), or a plain module, of which a copy is made one. `finetune_from` is a file of initial
    weights; `pretrained` takes the published ones. `trackers` and `on_epoch` follow the run. Under torchrun
    the ranks share every batch. Returns the run's summary; `out` is written when all inputs are checked.

    If `out` holds a run of the same settings, it is continued (see `resume`), so that the same call, made
    again, ends with the same summary. Raises RunError, naming the setting, if it holds one of others.
    """
    paths = (paths or Paths()).fetched(coerce.texts(settings.get("sources"), "sources"))
    augmentation, execution = augmentation or Augmentation(), execution or choose_execution()
    given, opened = coerce.place_or_none(finetune_from, "finetune_from"), open_trackers(trackers, on_epoch)
    target, model, out = coerce.text(target, "target"), coerce.model(model), coerce.place(out, "out")
    model = take_module(model, target, augmentation) or default_model(target, settings.get("method", "sskt"))
    began_with = first_weights(model, paths, given, pretrained)
    with join_world(execution.device) as world:
        planned = resolve(
            target,
            execution=execution,
            world=world,
            augmentation=augmentation,
            model=model,
            seed=coerce.seed(seed),
            limit=coerce.whole_or_none(limit, "limit"),
            eval_every=coerce.whole(eval_every, "eval_every", low=1),
            finetune_from=began_with,
            **settings,
        )
        require_learnable(planned)
        of_preset = makes_probe(settings.get("preset"), planned.method, settings.get("sources"))
        if world.broadcast(is_run(out)):
            require_settings(out, planned, paths=paths, execution=execution, world=world, of_preset=of_preset)
            own = None if isinstance(model, str) else model
            return resume(out, execution=execution, paths=paths, target=target, backbone=own, trackers=opened)
        data = open_data(planned, paths=paths, execution=execution, world=world, of_preset=of_preset)
        config = settle(planned, data)
        config, method = _open_method(model, began_with, config, data, execution, world, paths)
        places = to_record(target, paths, config.sources, given or began_with)
        places |= pools_to_record(config.unlabelled, planned.labelled_list)
        _log_choices(planned, config, len(data.dataset))
        run = Run.begin(out, config.to_dict(), places, data.probe, opened) if world.is_first else None
        return run_epochs(config, method, data, execution=execution, world=world, run=run, state=None)


def resume(
    out: Location | str,
    *,
    execution: Execution | None = None,
    paths: Paths | None = None,
    target: str | None = None,
    sources: Sequence[str] = (),
    unlabelled: Sequence[str] = (),
    backbone: Wrappable | None = None,
    trackers: str | Tracker | Sequence[str | Tracker] = (),
    on_epoch: OnEpoch | None = None,
) -> dict[str, Any]:
    """Continue the run in `out`, to the same numbers as without a stop; returns its summary. `trackers` and
    `on_epoch` as in `train`.

    Data, stores and weights are expected where they were (`paths_of`), or in `paths`. If they moved,
    `target`, such as imagefolder:PATH, and `sources`, such as program:FILE, say where they are; so does
    `unlabelled`, which names all pools in the order of the run. A run with a backbone of the caller's needs
    `backbone`, built as it was then. Raises RunError if `out` is no run, last.pt is damaged, or data or
    number of ranks have changed, RunBusyError if another process trains it.
    """
    out, backbone = coerce.place(out, "out"), coerce.backbone(backbone)
    followers = open_trackers(trackers, on_epoch)
    config = TrainConfig.from_dict(read_config(out), str(out / "config.json"))
    summary = read_summary(out)
    if summary is not None and has_student(out):
        log.info(f"{out}: has finished already, nothing is left to do")
        return summary
    state = _state(out, config, finished=summary is not None)
    sources = coerce.texts(sources, "sources")
    where = whereabouts_of(out, config, paths=paths, target=target, sources=sources)
    paths = where.paths.fetched(() if config.labels == "cached" else config.sources)
    execution = execution or choose_execution()
    require_stores(out, config, paths)
    with join_world(execution.device) as world:
        _require_ranks(config, world, out)
        data = open_data(
            _as_begun(config, where.target, out, unlabelled),
            paths=paths,
            execution=execution,
            world=world,
            require_data=lambda splits: _require_data(config, splits, out, where.target),
            probe=read_probe(out),
        )
        _require_same(config, data, out)
        # also what a pretext task computes for its videos
        require_contents(out, config.contents, data.contents, where.target, _SAME_DATA)
        network = reopen_backbone(config, backbone, out, resumes=True)
        if state is None and config.finetune_from is not None:
            load_pretrained(network, initial_weights_of(out, config, paths), config.model)
        method = open_method(config, network, data.source_classes)
        with kernels(config, execution.device):
            require_kernels(config, method, data.plan, execution.device, paths.kernels_file, out)
        log.info(_next_step(config, state, out))
        run = Run.go_on(out, state["history"] if state else (), followers) if world.is_first else None
        return run_epochs(config, method, data, execution=execution, world=world, run=run, state=state)


def _open_method(
    model: str | Backbone,
    began_with: Path | None,
    config: TrainConfig,
    data: TrainingData,
    execution: Execution,
    world: World,
    paths: Paths,
) -> tuple[TrainConfig, Method]:
    """A new run's method with its student, checked on the data, and the config with the layers that are off
    in the run's precision.
    """
    backbone = open_backbone(model, config)
    require_reads(backbone, config)
    require_runs(backbone, config, data.plan, len(data.dataset))
    _load_weights(backbone, began_with, config)
    method = open_method(config, backbone, data.source_classes)
    if config.ema:
        AveragedStudent(method.student, config.ema)  # which refuses one that cannot be copied
    with kernels(config, execution.device):
        config = with_plain_layers(config, method, data.plan, execution.device, world, paths.kernels_file)
    return config, method


def _load_weights(backbone: Backbone, path: Path | None, config: TrainConfig) -> None:
    """Load the initial weights of a new run, if there are any; logs what was assumed."""
    notes = () if path is None else load_pretrained(backbone, path, config.model)
    for note in filter(None, (backbone.note, *notes)):
        log.warning(note)


def _log_choices(planned: TrainConfig, config: TrainConfig, n: int) -> None:
    """Say what the recipe chose by the number of samples, and where settings are not the recipe's."""
    for remark in filter(None, (_by_size(planned, config, n), _departures(config))):
        log.info(remark)


def _by_size(planned: TrainConfig, config: TrainConfig, n: int) -> str:
    """A sentence on what the recipe chose by the number of training samples; empty if nothing."""
    chosen = [f"{name} {getattr(config, name):g}" for name in BY_SIZE if not getattr(planned, name)]
    return f"--recipe {config.recipe}, by {n:,} samples: {', '.join(chosen)}" if chosen else ""


def _departures(config: TrainConfig) -> str:
    """A sentence on the settings that are not the recipe's; empty if all are."""
    if not config.overridden:
        return ""
    published = recipe_for(config.target, config.method, name=config.recipe).published
    recipe = "the paper's recipe" if published else "the recipe"
    if config.recipe != "paper":
        recipe = f"the recipe {config.recipe}"
    ours = [f"{name} {value} (not {recipes})" for name, (value, recipes) in config.overridden.items()]
    return f"{recipe} of {config.target}, except: {', '.join(ours)}"


def _state(out: Location, config: TrainConfig, *, finished: bool) -> dict[str, Any] | None:
    """The state in last.pt; None if the run was stopped before its first checkpoint. Raises RunError if it
    belongs to another run, or is missing from a finished one.
    """
    state = read_checkpoint(out)
    if finished and state is None:
        raise RunError(
            f"{out}: has finished, but both its student and last.pt are missing; restore one of them, or "
            f"train again into another folder"
        )
    if state is not None and TrainConfig.from_dict(state["config"], str(out / "last.pt")) != config:
        raise RunError(f"{out}: config.json and last.pt are of different runs; restore the one that belongs")
    return state


def _require_ranks(config: TrainConfig, world: World, out: Location) -> None:
    """Raise RunError unless there are as many processes as when the run was started."""
    if world.size != config.ranks:
        raise RunError(
            f"{out}: was started by {config.ranks} process(es), this is one of {world.size}; they would "
            f"share batches differently, use torchrun --nproc-per-node {config.ranks}"
        )


def _as_begun(config: TrainConfig, target: str, out: Location, unlabelled: Sequence[str]) -> TrainConfig:
    """The config that a run was started with, with the present places of its target and pools."""
    # None: a val split or the test split chose
    val_share = config.val_share or (None if config.chosen_on else 0.0)
    names = unlabelled_of(out, config, target, coerce.texts(unlabelled, "unlabelled"))
    labelled_list = config.labelled_list and str(labelled_list_of(out, config))
    return replace(
        config, target=target, val_share=val_share, unlabelled=(NO_POOL, *names), labelled_list=labelled_list
    )


def _next_step(config: TrainConfig, state: dict[str, Any] | None, out: Location) -> str:
    """A sentence on what is left to do."""
    done = state["epoch"] if state else 0
    if done == config.epochs:
        return f"{out}: all {done} epochs are done, its student is written from last.pt"
    return f"{out}: continues in epoch {done + 1} of {config.epochs}"


def _require_same(config: TrainConfig, data: TrainingData, out: Location) -> None:
    """Raise RunError unless plan, views and sources are those of the run."""
    now = {"plan": data.plan.to_dict(), "views": config.views}
    if data.source_outputs is not None:
        now["views"] = data.source_outputs.views
        now["source_weights"] = dict(data.source_outputs.weights_sha256)
        now["contracts"] = declared_of(data.source_outputs)
    for name, value in now.items():
        if value != getattr(config, name):
            raise RunError(
                f"{out}: its {name} was {getattr(config, name)} and is {value} now; "
                f"continue it with the program and stores that it was started with"
            )


def _require_data(config: TrainConfig, splits: Splits, out: Location, target: str) -> None:
    """Raise RunError unless the data are those that the run was started with."""
    require_classes(config, splits.train.classes, out)
    where = {pool_key(number): pool.name for number, pool in enumerate(splits.pools)}
    for split, sha256 in splits.contents().items():
        require_contents(out, config.contents, {split: sha256}, where.get(split, target), _SAME_DATA)
