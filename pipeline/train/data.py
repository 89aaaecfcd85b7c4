"""What a student learns from: images, plan and source outputs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.data import (
    Augmentation,
    Centre,
    CentreClip,
    CornerClip,
    Dataset,
    PickedFrames,
    Plan,
    Pool,
    centre_frame,
    geometry_of,
    join,
    parse_target,
    pick_frames,
    pool_names,
    same_bytes,
)
from pipeline.runtime import Execution, Paths, World, require_named
from pipeline.source_outputs import (
    DataRequest,
    RunProbe,
    SourceOutputs,
    of_same_classes,
    open_outputs,
    probe_among,
    stored_graph_sources,
    stored_teachers,
)
from pipeline.stores import classes_of
from pipeline.train.config import TrainConfig
from pipeline.train.open_probe import open_probe
from pipeline.train.pretext.data import PretextVideos, open_pretext
from pipeline.train.splits import Splits, open_splits
from sskt.errors import RunError, shown
from sskt.losses import VECTOR_LOSSES
from sskt.methods import PRETEXT_METHODS, method_named, readers
from sskt.sources import asked_of, columns_of, kind_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The data of a run, opened."""

    dataset: Dataset  # the target's training samples, then those of the pools, unlabelled
    test_dataset: Dataset
    plan: Plan
    eval_plan: Centre | CentreClip | PickedFrames
    source_outputs: SourceOutputs | None  # None: no sources
    val_dataset: Dataset | None = None  # None: the test split chooses the best epoch, or none is chosen
    val_share: float = 0.0  # fraction of the training samples that are `val_dataset`
    chosen_on: str | None = "test"  # see `TrainConfig`
    contents: Mapping[str, str] = field(default_factory=dict)  # content sha256 of each split and pool
    pools: tuple[Pool, ...] = ()
    probe: RunProbe | None = None  # the one that teaches, if one does

    @property
    def source_classes(self) -> Mapping[str, int]:
        """The number of classes of each source; none where nobody teaches."""
        return self.source_outputs.n_classes if self.source_outputs else {}


def open_data(
    config: TrainConfig,
    *,
    paths: Paths,
    execution: Execution,
    world: World,
    require_data: Callable[[Splits], None] | None = None,
    probe: RunProbe | None = None,
    of_preset: bool = False,
) -> TrainingData:
    """Open everything that a student learns from, as `config` says; `probe` is that of a run that continues.

    `of_preset`: a preset chose the probe among the sources, see `open_probe`. `require_data` may refuse the
    splits before any source is opened. Raises what opening datasets, stores and sources raises.
    """
    spec, method = parse_target(config.target), method_named(config.method)
    splits = splits_of(config, paths)
    if require_data is not None:
        require_data(splits)
    for sentence in same_bytes(spec, splits.named, paths.index_dir):
        log.warning(sentence)
    augmentation = Augmentation(**config.augmentation)
    if config.sources and not method.needs:
        raise RunError(f"--method {config.method} has no sources; leave --source out, or use sskt or kd")
    if not method.needs and paths.contracts:
        raise RunError(f"--method {config.method} has no sources; leave --contract out, or use sskt or kd")
    outputs, fitted = None, None
    if config.method in PRETEXT_METHODS:
        return _of_pretext(config, splits, open_pretext(config, splits, paths, execution, world))
    if method.needs:
        outputs, fitted = _open_outputs(config, splits, paths, execution, world, probe, of_preset)
    plan, eval_plan = _shown(
        config, augmentation.training_plan(spec), augmentation.evaluation_plan(spec), outputs
    )
    return TrainingData(
        join([splits.train, *(pool.dataset for pool in splits.pools)]),
        splits.test,
        plan,
        eval_plan,
        outputs,
        val_dataset=splits.val,
        val_share=splits.val_share,
        chosen_on=splits.chosen_on,
        contents=splits.contents(),
        pools=splits.pools,
        probe=fitted,
    )


def _of_pretext(config: TrainConfig, splits: Splits, videos: PretextVideos) -> TrainingData:
    """The data of a pretext run, whose test split is only compared with the others."""
    spec = parse_target(config.target)
    return TrainingData(
        videos.train,
        splits.test,
        videos.plan,
        Augmentation(**config.augmentation).evaluation_plan(spec),
        None,
        val_dataset=videos.held_out,
        val_share=splits.val_share,
        chosen_on=splits.chosen_on,
        contents={**splits.contents(), **videos.contents},
        pools=splits.pools,
    )


def splits_of(config: TrainConfig, paths: Paths) -> Splits:
    """The splits of a run; without the samples that its method cannot learn from. Raises what `open_splits`
    raises.
    """
    splits = open_splits(
        config.target,
        paths=paths,
        limit=config.limit,
        val_share=config.val_share,
        chosen_on=config.chosen_on,
        labels_per_class=config.labels_per_class,
        labelled_list=None if config.labelled_list is None else Path(config.labelled_list),
        unlabelled=pools_of(config, paths),
        tests=config.method not in PRETEXT_METHODS,
    )
    return splits if method_named(config.method).reads_unlabelled else _labelled_only(splits, config)


def _shown(
    config: TrainConfig, plan: Plan, eval_plan: Centre | CentreClip, outputs: SourceOutputs | None
) -> tuple[Plan, Centre | CentreClip | PickedFrames]:
    """The plans as drawn: if the student reads images, the centre frame of each clip, so that no other frame
    is decoded. Of a training clip all frames are drawn where live sources look at them.
    """
    clips = geometry_of(plan)
    if config.student_frames is None or not isinstance(clips, CornerClip | CentreClip):
        return plan, eval_plan
    assert isinstance(eval_plan, CentreClip)  # noqa: S101 - as is that of every target of videos
    log.info(
        f"{config.model} reads images: of each clip it sees frame {clips.n_frames // 2} of {clips.n_frames}, "
        f"counted from 0"
    )
    cached = outputs is None or outputs.kind == "cached"
    return pick_frames(plan, (clips.n_frames // 2,)) if cached else plan, centre_frame(eval_plan)


def _labelled_only(splits: Splits, config: TrainConfig) -> Splits:
    """The splits without the training samples whose labels are hidden; says how many are left out."""
    train = splits.train
    n_hidden = len(train) - len(train.labelled)
    if not n_hidden:
        return splits
    log.info(
        f"--method {config.method} learns from labels alone: it trains on the {len(train.labelled):,} "
        f"samples with a label and leaves {n_hidden:,} out"
    )
    return replace(splits, train=train.take(train.labelled))


def pools_of(config: TrainConfig, paths: Paths) -> tuple[str, ...]:
    """The pools that a run trains on; a folder's own pool is only for methods that can use it."""
    names = pool_names(config.target, config.unlabelled, paths=paths)
    if not config.unlabelled and names and not method_named(config.method).reads_unlabelled:
        log.info(
            f"--method {config.method} learns from labels alone, so the unlabelled images of "
            f"{shown(names[0])} are not used"
        )
        return ()
    return names


def _open_outputs(
    config: TrainConfig,
    splits: Splits,
    paths: Paths,
    execution: Execution,
    world: World,
    probe: RunProbe | None,
    of_preset: bool,
) -> tuple[SourceOutputs, RunProbe | None]:
    """The source outputs for the training samples, and the probe among the sources, if there is one."""
    shares_classes = method_named(config.method).shares_classes
    sources = _of_same_task(config, paths, splits.train) if shares_classes else config.sources
    if all(map(asked_of, sources)) and sources:
        require_named(paths, [each for name in sources for each in asked_of(name)])
    request = _request_of(config, splits, paths, execution, world)
    if config.labels == "write-through" and world.size > 1:
        raise RunError(
            "--labels write-through fills a store from one process, and no rank sees all samples; "
            "run sskt precompute first, or train in one process"
        )
    fitted = None
    if probe_among(sources) is None:
        outputs = open_outputs(
            request, sources, labels=config.labels, views=config.views, teacher_bn=config.teacher_bn
        )
        require_named(replace(paths, weights={}), tuple(outputs.n_classes))
    else:
        outputs, fitted = open_probe(
            config, splits, request, sources, fitted=probe, world=world, of_preset=of_preset
        )
        require_named(paths, [each for name in outputs.n_classes for each in asked_of(name)])
    if shares_classes:
        outputs = of_same_classes(outputs, request, method=config.method, resumes=bool(config.source_weights))
    return outputs, fitted


def _request_of(
    config: TrainConfig, splits: Splits, paths: Paths, execution: Execution, world: World
) -> DataRequest:
    """What the sources are asked for: one of their outputs for each training sample."""
    dataset, spec = splits.train, parse_target(config.target)
    augmentation = Augmentation(**config.augmentation)
    n_seen = len(dataset) + sum(len(pool.dataset) for pool in splits.pools)
    sized = config.sized(n_seen)
    return DataRequest(
        config.target,
        spec,
        dataset,
        augmentation,
        augmentation.training_plan(spec),
        paths,
        execution,
        temperature=config.temperature,
        n_rows=-(-len(dataset) // world.size),
        n_forwards=-(-n_seen // world.size) * sized.epochs,
        n_step=-(-sized.batch_size // world.size),
        limit=config.limit,
        source_weights=config.source_weights,
        whole=splits.whole,
        needs_every_number=_every_number(config),
        pools=splits.pools,
        world=world,
    )


def _every_number(config: TrainConfig) -> str | None:
    """What in a run needs every number of a source's row, so that its top k do not serve."""
    if method_named(config.method).every_number:
        return f"--method {config.method}"
    return f"--aux-loss {config.aux_loss}" if config.aux_loss in VECTOR_LOSSES else None


def _of_same_task(config: TrainConfig, paths: Paths, dataset: Dataset) -> tuple[str, ...]:
    """The sources that know the target's classes: those that are named, else those with a store.

    Raises RunError if there is none, or if a run of ours has other classes, even if as many.
    """
    for name in config.sources:
        if kind_of(name).is_fitted:
            continue
        known = classes_of(paths.lying(name))
        if known is not None and columns_of(known, dataset.classes) is None:
            raise RunError(
                f"--method {config.method}: {name} knows {_some(known)} and {config.target} has "
                f"{_some(dataset.classes)}; name a teacher of the same task"
            )
    sources = config.sources
    if not sources and config.labels in ("auto", "cached"):
        if config.method in readers("graph_features") and config.graph_features != "off":
            return stored_graph_sources(paths.cache_dir, dataset, logits=config.graph_logits != "off")
        sources = stored_teachers(paths.cache_dir, dataset)
    if not sources:
        raise RunError(
            f"--method {config.method} needs a teacher of the same task; add --source probe or "
            f"--source run:FOLDER"
        )
    return sources


def _some(classes: tuple[str, ...]) -> str:
    return f"{len(classes)} classes ({', '.join(classes[:3])}, ...)"
