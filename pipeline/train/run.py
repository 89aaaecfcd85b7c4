"""Stage two by name: train a student."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Unpack

from pipeline.data import Augmentation
from pipeline.runtime import Execution, Paths, choose_execution, coerce, join_world
from pipeline.train.backbone import default_model, open_backbone, require_reads, require_runs
from pipeline.train.config import Settings, TrainConfig
from pipeline.train.data import open_data
from pipeline.train.kernel_check import with_plain_layers
from pipeline.train.loop import kernels, run_epochs
from pipeline.train.method import open_method, require_learnable
from pipeline.train.resolve import resolve
from pipeline.train.run_folder import Run
from pipeline.train.settle import settle
from pipeline.train.whereabouts import pools_to_record, to_record
from sskt.recipes import recipe_for
from sskt.students import Backbone
from sskt.students.average import AveragedStudent
from sskt.students.pretrained import load_pretrained

log = logging.getLogger(__name__)


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
    **settings: Unpack[Settings],
) -> dict[str, Any]:
    """Stage two: train one student on one target, by the paper's recipe unless `settings` say otherwise.

    `model` is a name, or your own backbone, which keeps its weights (`sskt.students.WrappedBackbone` makes
    one of any module). Under torchrun the ranks share every batch. Returns the run's summary. Nothing is
    written to `out` before all inputs have been checked.
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
        backbone = open_backbone(model, config.seed, config.clip_mean)
        require_reads(backbone, config)
        require_runs(backbone, config, data.plan, len(data.dataset))
        if began_with is not None:
            for note in load_pretrained(backbone, began_with, config.model):
                log.warning(note)
        method = open_method(config, backbone, data.source_classes)
        if config.ema:
            AveragedStudent(method.student, config.ema)  # which refuses one that cannot be copied
        with kernels(config, execution.device):
            config = with_plain_layers(config, method, data.plan, execution.device, world, paths.kernels_file)
        places = to_record(target, paths, config.sources, began_with)
        places |= pools_to_record(config.unlabelled, planned.labelled_list)
        run = Run.begin(out, config.to_dict(), places, data.probe) if world.is_first else None
        if config.overridden:
            log.info(_departures(config))
        return run_epochs(config, method, data, execution=execution, world=world, run=run, state=None)


def _departures(config: TrainConfig) -> str:
    published = recipe_for(config.target, config.method, name=config.recipe).published
    recipe = "the paper's recipe" if published else "the recipe"
    if config.recipe != "paper":
        recipe = f"the recipe {config.recipe}"
    ours = [f"{name} {value} (not {recipes})" for name, (value, recipes) in config.overridden.items()]
    return f"{recipe} of {config.target}, except: {', '.join(ours)}"
