"""Prepare teachers of the target's own classes (methods kd and graph): put their columns in the target's
order, and check them against the labels.
"""

from __future__ import annotations

import logging
from contextlib import closing

import numpy as np
import torch

from pipeline.data import Positions, open_renderer
from pipeline.runtime import Paths
from pipeline.source_outputs.outputs import SourceOutputs
from pipeline.source_outputs.reordered import ReorderedOutputs
from pipeline.source_outputs.request import DataRequest
from pipeline.stores import classes_of, knowledge_of, spread_positions, trial_positions
from sskt.errors import RunError
from sskt.sources import LOGITS_OUTPUT, Contract, columns_of, kind_of, output_of, shown

log = logging.getLogger(__name__)

_LIVE_IMAGES = 64  # run through a live teacher to check it


def of_same_classes(
    outputs: SourceOutputs, request: DataRequest, *, method: str, resumes: bool
) -> SourceOutputs:
    """Put every teacher's columns in the order of the target's classes, and log how often each is right;
    `method` names the one that they teach by in messages.

    Raises RunError for a teacher that declares other classes, and, unless the run `resumes`, for one that
    declares no order and fits the labels far better in another.
    """
    dataset = request.dataset
    contracts, columns = {}, {}
    for name, n_classes in outputs.n_classes.items():
        if kind_of(name).is_fitted or output_of(name) != LOGITS_OUTPUT:
            continue  # a probe has the target's classes by construction, an embedding or a map has none
        if n_classes != len(dataset.classes):
            continue  # the method rejects it, with its own message
        contracts[name] = contract = _contract_with_classes(outputs, name, request.paths)
        order = None
        if contract.classes is not None:
            order = columns_of(contract.classes, dataset.classes)
            if order is None:
                raise RunError(
                    f"--method {method}: {name} declares the classes {shown(contract.classes)}, and "
                    f"{dataset.target} has {shown(dataset.classes)}; declare the target's names in the order "
                    f"of its outputs, or name a teacher of the same task"
                )
        columns[name] = np.arange(n_classes) if order is None else order
    logits, positions = _sample_logits(outputs, request) if columns else ({}, np.empty(0, np.int64))
    for name, order in columns.items():
        knowledge = knowledge_of(logits[name].float().cpu(), dataset, positions, order)
        if knowledge.misplaced and contracts[name].classes is None and not resumes:
            raise RunError(
                f"--method {method}: {knowledge.sentence(name, dataset.target)}, or classes=target if they "
                f"are the target's all the same"
            )
        log.info(knowledge.sentence(name, dataset.target))
    reordered = {name: order for name, order in columns.items() if (order != np.arange(len(order))).any()}
    return ReorderedOutputs(outputs, reordered) if reordered else outputs


def _contract_with_classes(outputs: SourceOutputs, name: str, paths: Paths) -> Contract:
    """A teacher's contract, completed by the class names if it is a run of ours."""
    contract, known = outputs.contracts.get(name, Contract()), classes_of(paths.lying(name))
    return contract if known is None else contract.over(Contract(classes=known))


def _sample_logits(outputs: SourceOutputs, request: DataRequest) -> tuple[dict[str, torch.Tensor], Positions]:
    """Each source's logits (n, K) for some samples in view 0, and their positions in the dataset: many from a
    store, few from live sources.
    """
    dataset = request.dataset
    if outputs.kind == "cached":
        positions = spread_positions(dataset, max(outputs.n_classes.values()))
        outputs.load(0, positions)
        return outputs.logits(positions, torch.empty(0)), positions
    positions = trial_positions(dataset, _LIVE_IMAGES)
    with closing(open_renderer(dataset, request.plan, request.execution, batch_size=1)) as renderer:
        batches = [positions[i : i + 1] for i in range(len(positions))]
        pixels = torch.cat([batch.cpu() for batch in renderer.render(0, batches)])
    outputs.load(0, positions)
    return outputs.logits(positions, pixels), positions
