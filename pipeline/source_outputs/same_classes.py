"""Teachers of the target's own classes (method kd): their columns in the target's order, and a look at
whether they are right.
"""

from __future__ import annotations

import logging
from contextlib import closing

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.render import open_renderer
from pipeline.runtime import Paths
from pipeline.source_outputs import SourceOutputs
from pipeline.source_outputs.choose import DataRequest
from pipeline.source_outputs.reordered import ReorderedOutputs
from pipeline.stores import classes_of, knowledge_of, some_rows, trial_positions
from sskt.errors import RunError
from sskt.sources import Contract, columns_of, shown

log = logging.getLogger(__name__)

_LIVE_IMAGES = 64  # that a live teacher is asked about beforehand


def of_same_classes(labels: SourceOutputs, request: DataRequest, *, resumes: bool) -> SourceOutputs:
    """The labels with every teacher's columns in the order of the target's classes.

    How often each is right is said. Raises RunError for a teacher whose declared classes are others, and for
    one that declares no order and fits the labels far better in another; a run that goes on is told of the
    latter.
    """
    dataset = request.dataset
    contracts, columns = {}, {}
    for name, n_classes in labels.n_classes.items():
        if n_classes != len(dataset.classes):
            continue  # refused by the method, in words of its own
        contracts[name] = contract = _with_classes(labels, name, request.paths)
        order = None
        if contract.classes is not None:
            order = columns_of(contract.classes, dataset.classes)
            if order is None:
                raise RunError(
                    f"--method kd: {name} declares the classes {shown(contract.classes)}, and "
                    f"{dataset.target} has {shown(dataset.classes)}; declare the target's names in the order "
                    f"of its outputs, or name a teacher of the same task"
                )
        columns[name] = np.arange(n_classes) if order is None else order
    answers, rows = _answers(labels, request) if columns else ({}, np.empty(0, np.int64))
    for name, order in columns.items():
        found = knowledge_of(answers[name].float().cpu(), dataset, rows, order)
        if found.misplaced and contracts[name].classes is None and not resumes:
            raise RunError(
                f"--method kd: {found.sentence(name, dataset.target)}, or classes=target if they are the "
                f"target's all the same"
            )
        log.info(found.sentence(name, dataset.target))
    moved = {name: order for name, order in columns.items() if (order != np.arange(len(order))).any()}
    return ReorderedOutputs(labels, moved) if moved else labels


def _with_classes(labels: SourceOutputs, name: str, paths: Paths) -> Contract:
    """A teacher's contract, with the classes that a run of ours has."""
    contract, known = labels.contracts.get(name, Contract()), classes_of(paths.lying(name))
    return contract if known is None else contract.over(Contract(classes=known))


def _answers(
    labels: SourceOutputs, request: DataRequest
) -> tuple[dict[str, torch.Tensor], NDArray[np.int64]]:
    """Each source's logits (n, K) for some index rows in view 0, and which rows: of stores many, of live
    networks few.
    """
    dataset = request.dataset
    if labels.kind == "cached":
        rows = some_rows(dataset, max(labels.n_classes.values()))
        labels.load(0, rows)
        return labels.logits(rows, torch.empty(0)), rows
    rows = trial_positions(dataset, _LIVE_IMAGES)
    with closing(open_renderer(dataset, request.plan, request.execution, batch_size=1)) as renderer:
        pixels = torch.cat(list(renderer.render(0, [rows[i : i + 1] for i in range(len(rows))])))
    labels.load(0, rows)
    return labels.logits(rows, pixels), rows
