"""The pretext stage by name: train an encoder on videos alone, the first step towards a teacher of graph
distillation (Zhang and Peng, IJCAI 2018, section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict, Unpack

from cache import Location
from pipeline.data import Augmentation, has_val, parse_target
from pipeline.runtime import Execution, Paths, coerce
from pipeline.train.backbone import default_model
from pipeline.train.run import train
from pipeline.train.run_folder import ENCODER
from sskt.errors import RunError, SettingError
from sskt.students import PRETEXTS

HELD_OUT = 0.1  # of the training videos, where a target has no val split


class PretextSettings(TypedDict, total=False):
    """What a user may say of a pretext run, by the names of `TrainConfig`; None, like what is left out, means
    the task's recipe (`sskt.recipes`).
    """

    amp: str
    deterministic: bool
    val_share: float | None  # of the training videos, held out for the figures
    epochs: int | None
    batch_size: int | None
    optimizer: str | None
    lr: float | None
    weight_decay: float | None
    clip_norm: float | None


def pretext(
    targets: str | Sequence[str],
    *,
    task: str,
    out: Location | str,
    model: str | None = None,
    augmentation: Augmentation | None = None,
    paths: Paths | None = None,
    execution: Execution | None = None,
    seed: int = 0,
    limit: int | None = None,
    eval_every: int = 1,
    **settings: Unpack[PretextSettings],
) -> dict[str, Any]:
    """Train the encoder of one pretext task on the training videos of `targets`, whose labels are not read.

    `task` is one of PRETEXTS; `model` is its network (default: vgg19-sorting, prednet and so on) or the same
    with -small. A tenth of the first target's training videos, or its val split, is held out for the figures;
    a test split is never shown. `out` is a run folder like that of `train`, and a stopped run in it is
    continued. Returns the run's summary: among others task, targets, model,
    accuracy and chance in percent, iterations, `run`, the folder, and `encoder`, the file that
    `train(..., finetune_from=...)` reads. Raises RunError for targets of images, videos that are too short
    and settings that are none of a pretext run.
    """
    target, planned = as_training(targets, task=task, model=model, paths=paths or Paths(), **settings)
    out = coerce.place(out, "out")
    summary = train(
        target,
        out=out,
        augmentation=augmentation,
        paths=paths,
        execution=execution,
        seed=seed,
        limit=limit,
        eval_every=eval_every,
        **planned,
    )
    return with_places(summary, out)


def with_places(summary: dict[str, Any], out: Location) -> dict[str, Any]:
    """The summary of the pretext run in `out`, with its folder and the file of its encoder."""
    return {**summary, "run": str(out), "encoder": str(out / ENCODER)}


def as_training(
    targets: str | Sequence[str],
    *,
    task: str,
    model: str | None,
    paths: Paths,
    **settings: Unpack[PretextSettings],
) -> tuple[str, dict[str, Any]]:
    """A pretext run as `train` takes it: its target, and its settings. A task is a method of its own, and
    further targets are pools of samples without labels. Raises RunError as `pretext` does.
    """
    if coerce.text(task, "task") not in PRETEXTS:
        raise SettingError("task", f"is {task!r}, expected one of {', '.join(PRETEXTS)}")
    first, *others = _require_videos(coerce.texts(targets, "targets"), task)
    if strange := sorted(set(settings) - set(PretextSettings.__annotations__)):
        raise RunError(
            f"{strange[0]} is not a setting of a pretext run, expected one of "
            f"{', '.join(PretextSettings.__annotations__)}"
        )
    usual = default_model(first, task)
    if model not in (None, usual, f"{usual}-small"):
        raise SettingError("model", f"is {model}, for {task} expected {usual} or {usual}-small")
    share = settings.get("val_share")
    if share is None and not has_val(parse_target(first), paths.data_dir):
        share = HELD_OUT
    own = {"method": task, "model": model or usual, "unlabelled": tuple(others), "preset": "paper"}
    return first, {**settings, **own, "val_share": share}


def _require_videos(targets: tuple[str, ...], task: str) -> tuple[str, ...]:
    """Raise RunError unless there is a target, and all hold videos."""
    if not targets:
        raise RunError(f"the pretext task {task} needs a target; name ucf101, hmdb51 or videofolder:PATH")
    seen: set[str] = set()
    for target in targets:
        given = parse_target(target).as_given
        if given in seen:
            raise RunError(f"--target {target} is named twice; leave one out")
        seen.add(given)
        if not parse_target(target).holds_videos:
            raise RunError(
                f"the pretext task {task} learns from videos, and {target} holds images; name ucf101, hmdb51 "
                f"or videofolder:PATH"
            )
    return targets
