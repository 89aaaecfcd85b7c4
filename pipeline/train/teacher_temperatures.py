"""The temperature of each teacher of method graph, such that their answers are equally soft."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.stores import spread_positions
from pipeline.train.config import TrainConfig
from sskt.errors import RunError
from sskt.methods import readers
from sskt.sources import LOGITS_OUTPUT, kind_of, output_of, parse_source

if TYPE_CHECKING:
    from pipeline.train.data import TrainingData


def settle_temperatures(config: TrainConfig, data: TrainingData) -> dict[str, float]:
    """T_k of each source, in the order of a run's sources: as asked for by --teacher-temperature, else
    T s_k / (geometric mean of all s), with the run's `temperature` T. Nothing for what reads none.

    s_k is the root mean square of teacher k's logits less their mean over classes, over labelled samples in
    stored view 0, evenly spread where there are many. Their labels have no part in it. The paper gives no
    values. Raises RunError for a temperature of a source that the run has not, and where there is no store.
    """
    outputs = data.source_outputs
    if outputs is None or config.method not in readers("teacher_temperature"):
        return {}
    if config.graph_logits != "em":
        if config.teacher_temperature:
            compared = "logits" if config.graph_logits == "cosine" else "none"
            raise RunError(
                f"--teacher-temperature softens probabilities, and --graph-logits {config.graph_logits} "
                f"compares {compared}; leave it out"
            )
        return {}
    names = tuple(name for name in outputs.n_classes if output_of(name) == LOGITS_OUTPUT)
    asked = {_source(name, names): value for name, value in config.teacher_temperature.items()}
    left = [name for name in names if name not in asked]
    if not left:
        return {name: asked[name] for name in names}
    if outputs.kind != "cached":
        raise RunError(
            f"--method {config.method} measures how large its teachers' logits are in a store, and this run "
            f"has --labels {outputs.kind}; give --teacher-temperature NAME=T for {', '.join(left)}, or run "
            f"sskt precompute and use --labels cached"
        )
    positions = spread_positions(data.dataset, max(outputs.n_classes[name] for name in names))
    outputs.load(0, positions)
    logits = outputs.logits(positions, torch.empty(0))
    scales = {name: _scale(logits[name]) for name in names}
    if flat := [name for name in left if scales[name] == 0]:
        raise RunError(f"{flat[0]}: says the same of all classes, so it teaches nothing; leave it out")
    middle = float(np.exp(np.mean([np.log(scale) for scale in scales.values() if scale > 0])))
    return {name: asked.get(name, config.temperature * scales[name] / middle) for name in names}


def _source(told: str, names: tuple[str, ...]) -> str:
    """The source of a run that `told` names, run:FOLDER also where the run has its store's run:NAME."""
    if told in names:
        return told
    named = [name for name in names if kind_of(told).is_path and name == parse_source(told).name]
    if not named:
        raise RunError(
            f"--teacher-temperature names {told}, which is no source of this run; name one of "
            f"{', '.join(names)}"
        )
    return named[0]


def _scale(logits: torch.Tensor) -> float:
    """The root mean square of (n, C) logits around each row's mean."""
    rows = logits.double()
    return float((rows - rows.mean(dim=1, keepdim=True)).square().mean().sqrt())
