"""Stage two by name: train a student, go on with one, score one."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipeline.data.augmentation import Augmentation
from pipeline.data.plan import CentreClip, plan_from
from pipeline.data.pools import NONE
from pipeline.data.prepare import open_dataset
from pipeline.runtime import Execution, Paths, choose_execution, coerce, join_world
from pipeline.train.config import OWN_MEAN, TrainConfig
from pipeline.train.confusion import write_confusion
from pipeline.train.data import TrainingData, open_data
from pipeline.train.evaluate import Evaluator, of_clips
from pipeline.train.kernel_check import input_shape, prepare_to_score, require_kernels, with_plain_layers
from pipeline.train.loop import kernels, run_epochs
from pipeline.train.method import open_method, require_learnable
from pipeline.train.resolve import declared_of, require_reads, resolve, settle, smallest_step, weights_name
from pipeline.train.run_folder import (
    Run,
    has_student,
    read_checkpoint,
    read_config,
    read_paths,
    read_probe,
    read_student,
    read_summary,
)
from pipeline.train.splits import Splits, pool_key, scoring_split
from pipeline.train.whereabouts import (
    labelled_list_of,
    pools_to_record,
    require_contents,
    require_stores,
    to_record,
    unlabelled_of,
    whereabouts_of,
)
from sskt.errors import RunError
from sskt.recipes import recipe_for
from sskt.students import Backbone, build_backbone
from sskt.students.average import AveragedStudent
from sskt.students.backbone import to_channels_last
from sskt.students.pretrained import load_pretrained
from sskt.students.resnet3d import ResNet3D
from sskt.students.student import Student

log = logging.getLogger(__name__)

EVALUATION_CLIPS = 10  # of a video


def train(
    target: str,
    *,
    out: Path | str,
    model: str | Backbone | None = None,
    augmentation: Augmentation | None = None,
    paths: Paths | None = None,
    execution: Execution | None = None,
    seed: int = 0,
    limit: int | None = None,
    eval_every: int = 1,
    finetune_from: Path | str | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Stage two: train one student on one target, by the paper's recipe where `settings` do not say
    otherwise.

    `model` is a name or a backbone of one's own, which keeps the weights it has
    (`sskt.students.WrappedBackbone` makes one of any module). `settings` are those of
    `pipeline.train.resolve.resolve`: method, sources, labels, views; the recipe's (epochs, lr, temperature,
    ...); the method's own. Under torchrun the ranks share every batch. Returns the run's summary. Nothing is
    written to `out` before all inputs are known to be good.
    """
    augmentation = augmentation or Augmentation()
    paths, execution = paths or Paths(), execution or choose_execution()
    target, model, out = coerce.text(target, "target"), coerce.model(model), coerce.path(out, "out")
    model = model or default_model(target, settings.get("method", "sskt"))
    began_with = None if finetune_from is None else coerce.path(finetune_from, "finetune_from")
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
        data = open_data(planned, paths=paths, execution=execution, world=world)
        config = settle(planned, data)
        backbone = _backbone(model, config.seed, config.clip_mean)
        require_reads(backbone, config)
        _require_runs(backbone, config, data)
        if began_with is not None:
            for note in load_pretrained(backbone, began_with, config.model):
                log.warning(note)
        method = open_method(config, backbone, _source_classes(data))
        if config.ema:
            AveragedStudent(method.student, config.ema)  # which refuses one that cannot be copied
        with kernels(config, execution.device):
            config = with_plain_layers(config, method, data.plan, execution.device, world, paths.kernels_file)
        found = to_record(target, paths, config.sources, began_with)
        found |= pools_to_record(config.unlabelled, planned.labelled_list)
        run = Run.begin(out, config.to_dict(), found, data.probe) if world.is_first else None
        if config.overridden:
            log.info(_departures(config))
        return run_epochs(config, method, data, execution=execution, world=world, run=run, state=None)


def resume(
    out: Path | str,
    *,
    execution: Execution | None = None,
    paths: Paths | None = None,
    target: str | None = None,
    sources: Sequence[str] = (),
    unlabelled: Sequence[str] = (),
    backbone: Backbone | None = None,
) -> dict[str, Any]:
    """Go on with the run in `out`, to the numbers that it would have had without a stop; returns its summary.

    Data, stores and weights are looked for where they were (`paths_of`), or in `places`; `target`, such as
    imagefolder:PATH, and `sources`, such as program:FILE, say where those lie that have moved; so does
    `unlabelled`, which names all pools of samples without labels, in the order of the run. A `backbone`
    is needed, built as it was then, where the run was begun with one. Raises RunError if `out` is no run, its
    last.pt is damaged, or the data or the number of ranks are others by now, RunBusyError if another process
    trains it.
    """
    out, backbone = coerce.path(out, "out"), coerce.backbone(backbone)
    config = TrainConfig.from_dict(read_config(out), str(out / "config.json"))
    summary = read_summary(out)
    if summary is not None and has_student(out):
        log.info(f"{out}: has come to its end already, nothing is left to do")
        return summary
    state = _state(out, config, finished=summary is not None)
    where, execution = (
        whereabouts_of(out, config, paths=paths, target=target, sources=coerce.texts(sources, "sources")),
        execution or choose_execution(),
    )
    paths = where.paths
    require_stores(out, config, paths)
    with join_world(execution.device) as world:
        if world.size != config.ranks:
            raise RunError(
                f"{out}: was begun by {config.ranks} process(es), this is one of {world.size}; the batches' "
                f"parts would differ, use torchrun --nproc-per-node {config.ranks}"
            )
        data = open_data(
            _as_begun(config, where.target, out, unlabelled),
            paths=paths,
            execution=execution,
            world=world,
            require_data=lambda splits: _require_data(config, splits, out, where.target),
            probe=read_probe(out),
        )
        _require_same(config, data, out)
        if config.is_own and backbone is None:
            raise RunError(
                f"{out}: its student is {config.model}; continue it from Python, with that backbone"
            )
        done = state["epoch"] if state else 0
        if done == config.epochs:
            log.info(f"{out}: all {done} epochs are done, its student is written from last.pt")
        else:
            log.info(f"{out}: goes on in epoch {done + 1} of {config.epochs}")
        backbone = _backbone(backbone or config.model, config.seed, config.clip_mean)
        if state is None and config.finetune_from is not None:
            _begin_again(backbone, config, out)
        method = open_method(config, backbone, _source_classes(data))
        with kernels(config, execution.device):
            require_kernels(config, method, data.plan, execution.device, paths.kernels_file, out)
        run = Run.go_on(out, state["history"] if state else ()) if world.is_first else None
        return run_epochs(config, method, data, execution=execution, world=world, run=run, state=state)


def _state(out: Path, config: TrainConfig, *, finished: bool) -> dict[str, Any] | None:
    """What last.pt holds; None for a run that was stopped before it had one. Raises RunError if it belongs to
    another run, or is gone from one that has finished.
    """
    state = read_checkpoint(out)
    if finished and state is None:
        raise RunError(
            f"{out}: has come to its end, but neither its student nor last.pt is there any more; restore one "
            f"of them, or train again into another folder"
        )
    if state is not None and TrainConfig.from_dict(state["config"], str(out / "last.pt")) != config:
        raise RunError(f"{out}: config.json and last.pt are of different runs; restore the one that belongs")
    return state


def _as_begun(config: TrainConfig, target: str, out: Path, unlabelled: Sequence[str]) -> TrainConfig:
    """What a run asked for when it began, where its target and pools lie now."""
    # None: a val split or the test split chose
    val_share = config.val_share or (None if config.chosen_on else 0.0)
    names = unlabelled_of(out, config, target, coerce.texts(unlabelled, "unlabelled"))
    labelled_list = config.labelled_list and str(labelled_list_of(out, config))
    return replace(
        config, target=target, val_share=val_share, unlabelled=(NONE, *names), labelled_list=labelled_list
    )


def _source_classes(data: TrainingData) -> Mapping[str, int]:
    return data.source_outputs.n_classes if data.source_outputs else {}


def evaluate(
    run: Path | str,
    *,
    paths: Paths | None = None,
    target: str | None = None,
    execution: Execution | None = None,
    which: str = "last",
    clips: int | str = EVALUATION_CLIPS,
    backbone: Backbone | None = None,
) -> dict[str, Any]:
    """Score a run's exported student, "last" or "best", on its target's test split, with the run's own
    evaluation view; of videos, by `clips` of each, or "all", as the released test script does. Its confusion
    matrix goes into the run's folder.

    The data are looked for where they were (`paths_of`), or in `places`, or where `target` says, such as
    imagefolder:PATH. A `backbone` is needed, built as it was then, where the run had one of the caller's.
    Raises RunError if `run` is no finished run, or its test split holds other data or classes by now.
    """
    run, backbone = coerce.path(run, "run"), coerce.backbone(backbone)
    config = TrainConfig.from_dict(read_config(run), str(run / "config.json"))
    where = whereabouts_of(run, config, paths=paths, target=target)
    paths, execution = where.paths, execution or choose_execution()
    if which == "best" and config.chosen_on is None:
        raise RunError(
            f"{run}: was trained with --val-share 0, so it has no best epoch; score the last one's"
        )
    dataset = open_dataset(where.target, scoring_split(config, where.target, paths), paths=paths)
    _require_classes(config, dataset.classes, run)
    now = {"test": dataset.content_sha256}
    require_contents(run, config.contents, now, where.target, "give the data whose test split scored it")
    if config.is_own and backbone is None:
        raise RunError(f"{run}: its student is {config.model}; score it from Python, with that backbone")
    network = _backbone(backbone or config.model, config.seed, config.clip_mean)
    student = Student(network, len(config.classes), {}, transfer_module=False)
    student.load_state_dict(read_student(run, which))
    student.to(execution.device)
    if config.channels_last:  # to the last bit as while it trained
        to_channels_last(student)
    plan = plan_from(config.eval_plan, str(run / "config.json"))
    if isinstance(plan, CentreClip):
        plan = of_clips(plan, clips, config.student_frames)
    prepare_to_score(student, config, plan, execution.device, paths.kernels_file)
    figures, confusion = Evaluator(dataset, plan, execution).report(student, config.amp)
    if confusion is not None:
        try:
            figures |= write_confusion(confusion, dataset.classes, run)
        except RunError as error:  # a run in a place of others' is scored all the same
            log.info(str(error))
    return figures


def default_model(target: str, method: str) -> str:
    """The student of a run that names none: the recipe's first."""
    return recipe_for(target, method).models[0]


def _backbone(model: str | Backbone, seed: int, clip_mean: str) -> Backbone:
    """A named one starts from the seed; its heads' weights follow it in either case."""
    torch.manual_seed(seed)
    if isinstance(model, str):
        return build_backbone(model, clip_mean=clip_mean)
    if isinstance(model, ResNet3D) and clip_mean != OWN_MEAN:
        model.take_off(clip_mean)  # of a run that was begun before backbones had another mean
    return model


def _require_runs(backbone: Backbone, config: TrainConfig, data: TrainingData) -> None:
    """Raise RunError for pictures or batches that are too small for a named network. It stays as it is."""
    # it has been tried by `sskt.students.WrappedBackbone`, and may not be one that can be copied
    if config.is_own:
        return
    n = min(2, smallest_step(config, len(data.dataset)) // config.ranks)
    shape = input_shape(config, data.plan, n)
    trial = copy.deepcopy(backbone).cpu().train()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            trial(torch.zeros(shape))
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"--model {config.model} cannot train on {n} picture(s) of {shape[-1]} px at a time "
            f"({str(error).splitlines()[0]}); choose another --model, --size"
            f"{', --clip-frames' if len(shape) == 5 else ''} or --batch-size"
        ) from error


def _begin_again(backbone: Backbone, config: TrainConfig, out: Path) -> None:
    """Give a run that was stopped before its first checkpoint the weights that it began with."""
    path = Path(read_paths(out).get("finetune_from") or "")
    if not path.is_file() or weights_name(path) != config.finetune_from:
        raise RunError(
            f"{out}: was stopped before its first checkpoint and began with {config.finetune_from}, which is "
            f"not at {path} any more; restore it, or begin anew in another folder"
        )
    load_pretrained(backbone, path, config.model)


def _require_same(config: TrainConfig, data: TrainingData, out: Path) -> None:
    """Raise RunError unless a run that goes on sees what it saw."""
    now = {"plan": data.plan.to_dict(), "views": config.views}
    if data.source_outputs is not None:
        now["views"] = data.source_outputs.views
        now["source_weights"] = dict(data.source_outputs.weights_sha256)
        now["contracts"] = declared_of(data.source_outputs)
    for name, value in now.items():
        if value != getattr(config, name):
            raise RunError(
                f"{out}: its {name} was {getattr(config, name)} and is {value} now; "
                f"continue it with the program and stores that it began with"
            )


def _require_data(config: TrainConfig, splits: Splits, out: Path, target: str) -> None:
    """Raise RunError unless a run that goes on has the data that it began with."""
    _require_classes(config, splits.train.classes, out)
    remedy = "continue it with the data that it began with"
    where = {pool_key(number): pool.name for number, pool in enumerate(splits.pools)}
    for split, sha256 in splits.contents().items():
        require_contents(out, config.contents, {split: sha256}, where.get(split, target), remedy)


def _require_classes(config: TrainConfig, found: tuple[str, ...], out: Path) -> None:
    if found != config.classes:
        raise RunError(
            f"{out}: was trained for {len(config.classes)} classes ({', '.join(config.classes[:3])}, ...), "
            f"its target now has {len(found)} ({', '.join(found[:3])}, ...); use the data it was trained for"
        )


def _departures(config: TrainConfig) -> str:
    published = recipe_for(config.target, config.method, name=config.recipe).published
    recipe = "the paper's recipe" if published else "the recipe"
    if config.recipe != "paper":
        recipe = f"the recipe {config.recipe}"
    ours = [f"{name} {value} (not {recipes})" for name, (value, recipes) in config.overridden.items()]
    return f"{recipe} of {config.target} but for: {', '.join(ours)}"
