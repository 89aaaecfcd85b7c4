"""What a student learns from: its pictures, its plan, and what its sources say."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.data.augmentation import Augmentation
from pipeline.data.datasets import parse_target
from pipeline.data.datasets.dataset import Dataset
from pipeline.data.datasets.remarks import same_bytes
from pipeline.data.plan import Centre, CentreClip, Plan
from pipeline.runtime import coerce
from pipeline.runtime.distributed import World
from pipeline.runtime.execution import Execution
from pipeline.runtime.paths import Paths, require_named
from pipeline.source_outputs import SourceOutputs
from pipeline.source_outputs.choose import Request, open_source_outputs, stored_teachers
from pipeline.source_outputs.same_classes import of_same_classes
from pipeline.stores.contracts import classes_of
from pipeline.train.splits import Splits, contents_of, open_splits
from sskt.errors import RunError
from sskt.methods import method_named
from sskt.sources.class_order import columns_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Supervision:
    """How a student is taught."""

    method: str = "sskt"  # one of sskt.methods.METHODS
    sources: tuple[str, ...] = ()  # none: those with a whole view stored, for kd those that know the classes
    labels: str = "auto"  # or "cached", "live" or "write-through"
    views: int | None = None  # None: all that are stored
    transfer_module: bool = False
    kd_reduction: str | None = None  # "mean", "batchmean"; None: "batchmean" for method kd, else "mean"
    gradient_cosine: str = "off"  # or "record", "weigh"; of sskt
    peers: int = 2  # of dml
    psi: int = 5  # sub-classes of a class, of maxl
    teacher_bn: str = "frozen"  # or "batch-stats", as the released code has it; live only

    def __post_init__(self) -> None:
        """Raises RunError for sources that are no names, or numbers that are not whole."""
        object.__setattr__(self, "sources", coerce.texts(self.sources, "sources"))
        object.__setattr__(self, "views", coerce.whole_or_none(self.views, "views"))
        object.__setattr__(self, "peers", coerce.whole(self.peers, "peers"))
        object.__setattr__(self, "psi", coerce.whole(self.psi, "psi"))


@dataclass(frozen=True, slots=True)
class Asked:
    """What decides the pixels and logits of a run."""

    target: str
    supervision: Supervision
    augmentation: Augmentation
    paths: Paths
    execution: Execution
    limit: int | None
    world: World
    settings: Mapping[str, Any]  # of the recipe
    val_share: float | None = None  # of the training samples, to choose the best epoch by; see `open_splits`
    chosen_on: str | None = None  # of a run that goes on
    source_weights: Mapping[str, str] = field(default_factory=dict)  # sha256, of a run that goes on
    require_data: Callable[[Splits], None] | None = None  # of a run that goes on: refuses other data


def open_training_data_of(asked: Asked) -> TrainingData:
    """Open everything that a student learns from."""
    spec, taught = parse_target(asked.target), asked.supervision
    splits = open_splits(
        asked.target,
        paths=asked.paths,
        limit=asked.limit,
        val_share=asked.val_share,
        chosen_on=asked.chosen_on,
    )
    if asked.require_data is not None:
        asked.require_data(splits)
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    there = {name: part for name, part in parts.items() if part is not None}
    for sentence in same_bytes(spec, there, asked.paths.index_dir):
        log.warning(sentence)
    plan, eval_plan = asked.augmentation.training_plan(spec), asked.augmentation.evaluation_plan(spec)
    needs_sources = bool(method_named(taught.method).needs)
    if taught.sources and not needs_sources:
        raise RunError(f"--method {taught.method} has no sources; leave --source out, or use sskt or kd")
    if not needs_sources and asked.paths.contracts:
        raise RunError(f"--method {taught.method} has no sources; leave --contract out, or use sskt or kd")
    return TrainingData(
        splits.train,
        splits.test,
        plan,
        eval_plan,
        _open_labels(asked, splits, plan) if needs_sources else None,
        val_dataset=splits.val,
        val_share=splits.val_share,
        chosen_on=splits.chosen_on,
    )


def _open_labels(asked: Asked, splits: Splits, plan: Plan) -> SourceOutputs:
    """What the sources say of the training samples."""
    taught, dataset = asked.supervision, splits.train
    shares_classes = method_named(taught.method).shares_classes
    sources = _teachers(asked, dataset) if shares_classes else taught.sources
    if sources:
        require_named(asked.paths, sources)
    n_rows = -(-len(dataset) // asked.world.size)
    request = Request(
        asked.target,
        parse_target(asked.target),
        dataset,
        asked.augmentation,
        plan,
        asked.paths,
        asked.execution,
        temperature=asked.settings["temperature"],
        n_rows=n_rows,
        n_forwards=n_rows * asked.settings["epochs"],
        limit=asked.limit,
        source_weights=asked.source_weights,
        whole=splits.whole,
    )
    if taught.labels == "write-through" and asked.world.size > 1:
        raise RunError(
            "--labels write-through fills a store from one process, and no rank sees all samples; "
            "run sskt precompute first, or train in one process"
        )
    labels = open_source_outputs(
        request, sources, labels=taught.labels, views=taught.views, teacher_bn=taught.teacher_bn
    )
    require_named(replace(asked.paths, weights={}), tuple(labels.n_classes))
    if shares_classes:
        return of_same_classes(labels, request, resumes=bool(asked.source_weights))
    return labels


def _teachers(asked: Asked, dataset: Dataset) -> tuple[str, ...]:
    """Of the same task: those that are named, else those that have a store.

    Raises RunError if there is none, or a run of ours has other classes: their number alone says little.
    """
    taught = asked.supervision
    for name in taught.sources:
        known = classes_of(asked.paths.lying(name))
        if known is not None and columns_of(known, dataset.classes) is None:
            raise RunError(
                f"--method kd: {name} knows {_some(known)} and {asked.target} has {_some(dataset.classes)}; "
                f"name a teacher of the same task"
            )
    sources = taught.sources
    if not sources and taught.labels in ("auto", "cached"):
        sources = stored_teachers(asked.paths.cache_dir, dataset)
    if not sources:
        raise RunError("--method kd needs a teacher of the same task; add --source run:FOLDER")
    return sources


def _some(classes: tuple[str, ...]) -> str:
    return f"{len(classes)} classes ({', '.join(classes[:3])}, ...)"


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What a student is trained and tested on."""

    dataset: Dataset
    test_dataset: Dataset
    plan: Plan
    eval_plan: Centre | CentreClip
    labels: SourceOutputs | None  # None: no sources
    val_dataset: Dataset | None = None  # None: the test split chooses the best epoch, or nothing does
    val_share: float = 0.0  # of the training samples that are `val_index`
    chosen_on: str | None = "test"  # see `TrainConfig`

    def contents(self) -> dict[str, str]:
        """The sha256 of what each split holds."""
        return contents_of(self.dataset, self.test_dataset, self.val_dataset)
