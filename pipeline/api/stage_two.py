"""Stage two by name: train a student, go on with one, score one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cache.files import location
from pipeline.api.lesson import Asked, Supervision, open_lesson
from pipeline.api.stage_one import open_index
from pipeline.choices import Augmentation, Places, channels_last, choose_execution, student_precision
from pipeline.confusion import write_confusion
from pipeline.evaluate import Evaluator
from pipeline.execution import Execution
from pipeline.plan import CentreClip, plan_from
from pipeline.ranks import joined
from pipeline.run import Run, read_checkpoint, read_config, read_places, read_student, read_summary
from pipeline.targets.spec import TargetSpec, parse_target
from pipeline.training.config import TrainConfig
from pipeline.training.method import open_method
from pipeline.training.train import Lesson, train
from sskt.backbones import BACKBONES, CLIP_BACKBONES, Backbone, build_backbone
from sskt.download import digest_of
from sskt.errors import RunError
from sskt.finetune import load_pretrained
from sskt.recipes import recipe_for
from sskt.student import Student, memory_layout

Say = Callable[[str], None]

EVALUATION_CLIPS = 10  # of a video
# where a method is not described by the recipes: Hinton et al.'s distillation, and MAXL's equal weights
_OF_METHOD: dict[str, dict[str, Any]] = {
    "kd": {"aux_loss": "kd", "temperature": 4.0, "alpha": 0.9},
    "maxl": {"primary_loss": "focal", "aux_loss": "focal", "schedule": "cosine", "lr": 0.01, "alpha": 1.0},
}
_KD_REDUCTION = {"kd": "batchmean"}

_FROM_RECIPE = (
    "epochs",
    "batch_size",
    "lr",
    "schedule",
    "milestones",
    "gamma",
    "momentum",
    "dampening",
    "weight_decay",
    "temperature",
    "alpha",
    "aux_loss",
    "primary_loss",
)


@dataclass(frozen=True, slots=True)
class Tuning:
    """What the paper's recipes leave out, off by default, and how the student's step is computed."""

    clip_norm: float | None = None  # largest norm of all gradients together
    label_smoothing: float = 0.0
    finetune_from: Path | None = None  # weights that the backbone begins with; see sskt.finetune
    freeze_until: str | None = None  # the backbone's part before this one stays as it is
    mixup: float = 0.0  # a of Beta(a, a)
    cutmix: float = 0.0
    amp: str = "auto"  # precision: "auto" takes the fastest for the device; or "fp32", "bf16", "fp16"
    compiled: bool = False
    deterministic: bool = False


def run_train(
    target: str,
    *,
    out: Path | str,
    supervision: Supervision | None = None,
    augmentation: Augmentation | None = None,
    places: Places | None = None,
    execution: Execution | None = None,
    say: Say = print,
    seed: int = 0,
    model: str | Backbone | None = None,
    limit: int | None = None,
    eval_every: int = 1,
    tuning: Tuning | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Stage two: one student of one target, by the paper's recipe where `overrides` does not say otherwise.

    `model` is a name or a backbone of one's own, which keeps the weights it has (`sskt.backbones.Tapped`
    makes one of any module). `overrides` may set epochs, batch_size, lr, schedule, milestones, gamma,
    momentum, dampening, weight_decay, temperature, alpha, aux_loss and primary_loss; None leaves the recipe's
    value. Under torchrun the ranks share every batch. Returns the run's summary. Nothing is written to `out`
    before all inputs are known to be good.
    """
    supervision, augmentation = supervision or Supervision(), augmentation or Augmentation()
    places, execution, out = places or Places(), execution or choose_execution(), Path(out)
    recipe, tuning = recipe_for(target), tuning or Tuning()
    chosen = {name: value for name, value in (overrides or {}).items() if value is not None}
    if tuning.finetune_from is not None and recipe.finetune_lr is not None:
        chosen.setdefault("lr", recipe.finetune_lr)
    recipe = replace(recipe, **_OF_METHOD.get(supervision.method, {}))
    settings = {name: chosen.pop(name, getattr(recipe, name)) for name in _FROM_RECIPE}
    if chosen:
        raise RunError(f"{next(iter(chosen))} is no setting of a recipe, expected {', '.join(_FROM_RECIPE)}")
    with joined(execution.device) as ranks:
        asked = Asked(target, supervision, augmentation, places, execution, limit, ranks, settings)
        lesson = open_lesson(asked, say)
        labels = lesson.labels
        config = TrainConfig(
            target=target,
            classes=lesson.index.classes,
            model=_name_of(model or recipe.models[0]),
            method=supervision.method,
            sources=tuple(labels.n_classes) if labels else (),
            transfer_module=supervision.transfer_module,
            kd_reduction=supervision.kd_reduction or _KD_REDUCTION.get(supervision.method, "mean"),
            gradient_cosine=supervision.gradient_cosine,
            peers=supervision.peers,
            psi=supervision.psi,
            labels=labels.kind if labels else "none",
            teacher_bn=supervision.teacher_bn,
            views=labels.views if labels else supervision.views,
            seed=seed,
            limit=limit,
            eval_every=eval_every,
            ranks=ranks.world,
            plan=lesson.plan.to_dict(),
            eval_plan=lesson.eval_plan.to_dict(),
            augmentation=asdict(augmentation),
            contents=lesson.contents(),
            channels_last=channels_last(execution.device),
            **_tuned(tuning, execution),
            **settings,
        )
        _require_trainable(config, len(lesson.index))
        _require_fitting_loss(config, lesson)
        backbone = _backbone(model or config.model, seed)
        _require_reads(backbone, config, parse_target(target))
        if tuning.finetune_from is not None:
            load_pretrained(backbone, tuning.finetune_from, config.model)
        method = open_method(config, backbone, labels.n_classes if labels else {})
        run = Run.begin(out, config.to_dict(), _to_dict(places)) if ranks.first else None
        return train(config, method, lesson, execution=execution, ranks=ranks, run=run, state=None, say=say)


def resume_train(
    out: Path | str,
    *,
    execution: Execution | None = None,
    say: Say = print,
    places: Places | None = None,
    backbone: Backbone | None = None,
) -> dict[str, Any]:
    """Go on with the run in `out`, to the numbers that it would have had without a stop; returns its summary.

    Data, stores and weights are looked for where they were (`places_of`), or in `places`. A `backbone` is
    needed, built as it was then, where the run was begun with one. Raises RunError if `out` is no run, its
    last.pt is damaged, or the data or the number of ranks are others by now.
    """
    out = Path(out)
    config = TrainConfig.from_dict(read_config(out), str(out / "config.json"))
    summary = read_summary(out)
    if summary is not None:
        say(f"{out}: has come to its end already, nothing is left to do")
        return summary
    state = read_checkpoint(out)
    if state is not None and state["config"] != config.to_dict():
        raise RunError(f"{out}: config.json and last.pt are of different runs; restore the one that belongs")
    places, execution = places or places_of(out), execution or choose_execution()
    with joined(execution.device) as ranks:
        if ranks.world != config.ranks:
            raise RunError(
                f"{out}: was begun by {config.ranks} process(es), this is one of {ranks.world}; the batches' "
                f"parts would differ, use torchrun --nproc-per-node {config.ranks}"
            )
        settings = {name: getattr(config, name) for name in _FROM_RECIPE}
        supervision = Supervision(
            config.method, config.sources, config.labels, config.views, teacher_bn=config.teacher_bn
        )
        augmentation = Augmentation(**config.augmentation)
        asked = Asked(
            config.target, supervision, augmentation, places, execution, config.limit, ranks, settings
        )
        lesson = open_lesson(asked, say)
        _require_same(config, lesson, out)
        if config.model.startswith(_OWN) and backbone is None:
            raise RunError(
                f"{out}: its student is {config.model}; continue it from Python, with that backbone"
            )
        done = state["epoch"] if state else 0
        say(f"{out}: goes on in epoch {done + 1} of {config.epochs}")
        run = Run(out, state["history"] if state else ()) if ranks.first else None
        backbone = backbone or _backbone(config.model, config.seed)
        method = open_method(config, backbone, lesson.labels.n_classes if lesson.labels else {})
        return train(config, method, lesson, execution=execution, ranks=ranks, run=run, state=state, say=say)


def run_evaluate(
    run: Path,
    *,
    places: Places | None = None,
    execution: Execution | None = None,
    say: Say = print,
    which: str = "last",
    clips: int = EVALUATION_CLIPS,
) -> dict[str, Any]:
    """Score a run's exported student, "last" or "best", on its target's test split, with the run's own
    evaluation view; of videos, by `clips` of each. Its confusion matrix goes into the run's folder.

    The data are looked for where they were (`places_of`), or in `places`. Raises RunError if `run` is no
    finished run or its target has other classes by now.
    """
    config = TrainConfig.from_dict(read_config(run), str(run / "config.json"))
    places, execution = places or places_of(run), execution or choose_execution()
    index = open_index(config.target, "test", places=places, say=say)
    _require_classes(config, index.classes, run)
    if config.model.startswith(_OWN):
        raise RunError(f"{run}: its student is {config.model}; load {run}/student.safetensors in Python")
    student = Student(build_backbone(config.model), len(config.classes), {}, transfer_module=False)
    student.load_state_dict(read_student(run, which))
    student.to(execution.device)
    if config.channels_last:  # to the last bit as while it trained
        student.to(memory_format=memory_layout(student))
    plan = plan_from(config.eval_plan, str(run / "config.json"))
    if isinstance(plan, CentreClip):
        plan = replace(plan, n_clips=clips)
    figures, confusion = Evaluator(index, plan, execution).report(student, config.amp)
    return figures if confusion is None else {**figures, **write_confusion(confusion, index.classes, run)}


def places_of(run: Path, **given: Any) -> Places:
    """Where a run found its data_dir, cache_dir and weights, but for those that are `given`."""
    read_config(run)  # names what is no run at all
    found = read_places(run)
    weights = {name: Path(path) for name, path in found["weights"].items()}
    recorded = Places(Path(found["data_dir"]), location(found["cache_dir"]), weights)
    return replace(recorded, **given)


_OWN = "own:"  # before the class name of a backbone that the caller made


def _name_of(model: str | Backbone) -> str:
    return model if isinstance(model, str) else f"{_OWN}{type(model).__name__}"


def _backbone(model: str | Backbone, seed: int) -> Backbone:
    """A named one starts from the seed; its heads' weights follow it in either case."""
    torch.manual_seed(seed)
    return build_backbone(model) if isinstance(model, str) else model


def _tuned(tuning: Tuning, execution: Execution) -> dict[str, Any]:
    """`tuning` as a config has it."""
    began_with = tuning.finetune_from
    return asdict(tuning) | {
        "amp": student_precision(tuning.amp, execution.device),
        "finetune_from": began_with and f"{began_with.name} sha256 {_digest(began_with)[:16]}",
    }


def _digest(weights: Path) -> str:
    try:
        return digest_of(weights)
    except OSError as error:
        raise RunError(
            f"{weights}: cannot be read ({error.strerror or error}); check --finetune-from"
        ) from None


def _require_reads(backbone: Backbone, config: TrainConfig, spec: TargetSpec) -> None:
    wanted = spec.videos is not None
    if backbone.reads_clips != wanted:
        reads, holds = ("clips", "pictures") if backbone.reads_clips else ("pictures", "videos")
        able = [name for name in BACKBONES if (name in CLIP_BACKBONES) == wanted]
        raise RunError(
            f"--model {config.model} reads {reads}, and {spec.name} holds {holds}; "
            f"choose one of {', '.join(able)}"
        )


def _require_fitting_loss(config: TrainConfig, lesson: Lesson) -> None:
    several = lesson.index.presence is not None
    if several != (config.primary_loss == "bce"):
        holds, wanted = ("several labels", "bce") if several else ("one label", "ce or focal")
        raise RunError(
            f"--primary-loss {config.primary_loss}: the pictures of {config.target} have {holds} each; "
            f"use {wanted}"
        )
    if several and config.label_smoothing:
        raise RunError(
            f"--label-smoothing is of one label a picture, {config.target} has several; leave it out"
        )


def _require_trainable(config: TrainConfig, n_samples: int) -> None:
    smallest = n_samples // -(-n_samples // config.batch_size)
    if smallest < config.ranks:
        raise RunError(
            f"a step has {smallest} samples and {config.ranks} processes share them; raise --batch-size"
        )


def _require_same(config: TrainConfig, lesson: Lesson, out: Path) -> None:
    """Raise RunError unless a run that goes on sees what it saw."""
    _require_classes(config, lesson.index.classes, out)
    now = {"plan": lesson.plan.to_dict(), "contents": lesson.contents(), "views": config.views}
    if lesson.labels is not None:
        now["views"] = lesson.labels.views
    for name, value in now.items():
        if value != getattr(config, name):
            raise RunError(
                f"{out}: its {name} was {getattr(config, name)} and is {value} now; "
                f"continue it with the program and stores that it began with"
            )


def _require_classes(config: TrainConfig, found: tuple[str, ...], out: Path) -> None:
    if found != config.classes:
        raise RunError(
            f"{out}: was trained for {len(config.classes)} classes ({', '.join(config.classes[:3])}, ...), "
            f"its target now has {len(found)} ({', '.join(found[:3])}, ...); use the data it was trained for"
        )


def _to_dict(places: Places) -> dict[str, Any]:
    """Plain data that means the same from any folder."""
    cache_dir = places.cache_dir
    return {
        "data_dir": str(places.data_dir.absolute()),
        "cache_dir": str(cache_dir.absolute() if isinstance(cache_dir, Path) else cache_dir),
        "weights": {name: str(path.absolute()) for name, path in places.weights.items()},
    }
