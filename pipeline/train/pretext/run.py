"""The pretext stage by name: train an encoder on unlabelled videos, the first step towards a teacher of graph
distillation (Zhang and Peng, IJCAI 2018, section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from pipeline.data import Augmentation
from pipeline.runtime import Execution, Paths

PRETEXTS = ("sorting", "egomotion", "tracking", "prediction")


class PretextSettings(TypedDict, total=False):
    """What a user may say of a pretext run, by the names of `TrainConfig`; None, like what is left out, means
    the task's recipe.
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
    out: Path | str,
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

    `task` is one of PRETEXTS; `model` is its network by default (vgg19-sorting, prednet, ...), or the same
    with -small. `out` is a run folder like that of `train`: it must be empty, and `resume(out)` continues
    a stopped run. The encoder is `out`/encoder.safetensors, which `train(..., finetune_from=...)` reads.
    Returns the run's summary: task, targets, model, accuracy (of the held-out videos), chance, iterations and
    encoder, the path of that file.
    """
    raise NotImplementedError
