"""Open a run's outputs where a probe is among its sources; where it cannot be fitted, say what helps, or let
the sources that a preset made a probe of teach live.
"""

from __future__ import annotations

import logging

import numpy as np

from pipeline.runtime import World
from pipeline.source_outputs import (
    DataRequest,
    NothingStoredError,
    RunProbe,
    SourceOutputs,
    open_outputs,
    open_with_probe,
    probe_among,
    stored_sources,
)
from pipeline.train.config import TrainConfig
from pipeline.train.splits import Splits
from sskt.errors import RunError, TooFewLabelsError
from sskt.methods.sskt import SsktConfig
from sskt.sources import LOGITS_OUTPUT, asked_of, output_of

log = logging.getLogger(__name__)


def open_probe(
    config: TrainConfig,
    splits: Splits,
    request: DataRequest,
    sources: tuple[str, ...],
    *,
    fitted: RunProbe | None,
    world: World,
    of_preset: bool,
) -> tuple[SourceOutputs, RunProbe | None]:
    """The outputs of `sources` and the probe among them; see `open_with_probe`, also for what is raised.

    `of_preset`: nobody asked for the probe. Where every training sample has a label, it would tell a student
    little that is new, and where nothing is stored of the sources that it names, it cannot be fitted; source
    heads teach then, and there is no probe.
    """
    if of_preset and fitted is None and _prefers_heads(config, splits, request, sources):
        return _open_heads(config, request, sources), None
    try:
        probed = open_with_probe(
            request,
            sources,
            labels=config.labels,
            views=config.views,
            teacher_bn=config.teacher_bn,
            probe_views=config.probe_views,
            fitted=fitted,
            world=world,
        )
    except TooFewLabelsError as error:
        raise TooFewLabelsError(error.what, _remedy(config, splits, sources)) from None
    except NothingStoredError as error:
        if not of_preset:
            raise
        return _open_live(config, request, sources, error), None
    return probed, probed.probe


def _prefers_heads(
    config: TrainConfig, splits: Splits, request: DataRequest, sources: tuple[str, ...]
) -> bool:
    """Whether heads teach more than a preset's probe would: all samples have a label, there are sources, all
    of which give logits, and nobody set anything of a probe.
    """
    named = asked_of(sources[0]) or stored_sources(request.paths.cache_dir, request.dataset)
    of_logits = bool(named) and all(output_of(name) == LOGITS_OUTPUT for name in named)
    all_labelled = len(splits.train.labelled) == len(splits.train) and not splits.pools
    own = config.probe_views == "own" and config.labels in ("auto", "cached")  # else it could be no other
    return all_labelled and of_logits and not own and not _is_told(config)


def _is_told(config: TrainConfig) -> bool:
    """Whether something was set that only a probe reads."""
    usual = SsktConfig()
    return any(
        getattr(config, name) != getattr(usual, name) for name in ("probe_weight", "probe_temperature")
    )


def _open_heads(config: TrainConfig, request: DataRequest, sources: tuple[str, ...]) -> SourceOutputs:
    """The sources of a preset's probe as teachers of source heads."""
    log.info(
        f"--preset best: all {len(request.dataset):,} training samples have a label, of which a probe would "
        f"say little that is new, so a head per source teaches instead, with alpha {config.alpha:g}; "
        f"--source probe keeps the probe"
    )
    named = asked_of(sources[0])
    if not named and config.labels in ("live", "write-through"):  # which would ask the paper's two
        named = stored_sources(request.paths.cache_dir, request.dataset)
    return open_outputs(
        request, named, labels=config.labels, views=config.views, teacher_bn=config.teacher_bn
    )


def _open_live(
    config: TrainConfig, request: DataRequest, sources: tuple[str, ...], error: NothingStoredError
) -> SourceOutputs:
    """The sources of a preset's probe, asked live. Raises RunError if its user named none, or embeddings,
    which heads learn by other losses, or set something that only stored rows or a probe have.
    """
    named = asked_of(sources[0])
    if not named:
        raise RunError(f"{error}, or name a source that is asked live, such as --source imagenet") from None
    of_logits = all(output_of(name) == LOGITS_OUTPUT for name in named)
    if _is_told(config) or config.labels == "cached" or not of_logits:
        raise error
    listed = " and ".join(named)
    log.info(
        f"--preset best: nothing is stored of {listed}, so there is no probe, and {listed} teach"
        f"{'es' if len(named) == 1 else ''} live by source heads, as with --preset paper --recipe "
        f"{config.recipe}"
    )
    return open_outputs(
        request, named, labels=config.labels, views=config.views, teacher_bn=config.teacher_bn
    )


def _remedy(config: TrainConfig, splits: Splits, sources: tuple[str, ...]) -> str:
    """What helps where too few samples have a label."""
    counts = np.bincount(splits.whole.labels[splits.whole.labelled])
    if config.labels_per_class == 1:
        remedy = "keep more by --labels-per-class"
    elif config.labelled_list is not None:
        remedy = f"name at least two of each class in {config.labelled_list}"
    elif config.limit is not None:
        remedy = "raise --limit"
    elif splits.val_share and counts[counts > 0].min() > 1:
        remedy = "add --val-share 0 to train on the held-out samples as well"
    else:
        remedy = "label at least two of each class"
    probe = probe_among(sources)
    if config.method != "sskt" or probe is None:
        return remedy
    named = "".join(f" --source {name}" for name in asked_of(probe)) or " and no --source"
    return f"{remedy}, or learn by source heads, with --preset paper{named}"
