"""Stage one by name: prepare a target, precompute its stores, or estimate what that would cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pipeline.choices import DEFAULT_VIEWS, Augmentation, Places, choose_execution
from pipeline.estimate import estimate
from pipeline.execution import Execution
from pipeline.job import Job
from pipeline.precompute import StoreReport, precompute
from pipeline.schedule import Share
from pipeline.targets import has_val, load_index, parse_target, prepared
from pipeline.targets.index import TargetIndex
from pipeline.targets.spec import SPLITS
from pipeline.targets.video.pack import Packing
from pipeline.targets.video.prepare import prepare_videos
from sskt.clip_frames import ClipFrames
from sskt.errors import RunError, TargetError
from sskt.frozen import InputMap
from sskt.sources import Source, open_source

Say = Callable[[str], None]


def run_prepare(
    target: str,
    *,
    places: Places,
    say: Say,
    packing: Packing | None = None,
    allow_missing: bool = False,
) -> list[dict[str, Any]]:
    """Download a target if it can be, check every file, keep its index; one row of plain data per split.

    Of a target of videos every frame is packed, by `packing`; with `allow_missing` it may go on without
    videos that are listed and not there, or damaged.
    """
    spec, rows = parse_target(target), []
    if spec.videos is not None:
        prepare_videos(
            spec,
            places.data_dir,
            places.index_dir,
            packing=packing or Packing(),
            allow_missing=allow_missing,
            say=say,
        )
    say = once(say)
    for split in (*SPLITS, "val") if has_val(spec, places.data_dir) else SPLITS:
        index = open_index(target, split, places=places, say=say)
        rows.append(
            {
                "target": index.target,
                "split": split,
                "samples": len(index),
                "classes": len(index.classes),
                "contents": index.content_sha256,
            }
        )
    return rows


def once(say: Say) -> Say:
    """`say`, but for sentences that it has said already."""
    said = set[str]()

    def say_once(sentence: str) -> None:
        if sentence not in said:
            said.add(sentence)
            say(sentence)

    return say_once


def open_index(target: str, split: str, *, places: Places, say: Say, limit: int | None = None) -> TargetIndex:
    """The validated index of one split of a named target; what it has to remark is said."""
    index = load_index(
        parse_target(target), split, data_dir=places.data_dir, index_dir=places.index_dir, limit=limit
    )
    for note in index.notes:
        say(note)
    return index


def run_precompute(
    targets: Sequence[str],
    sources: Sequence[str],
    *,
    views: int = DEFAULT_VIEWS,
    augmentation: Augmentation | None = None,
    places: Places | None = None,
    execution: Execution | None = None,
    limit: int | None = None,
    say: Say = print,
    top_k: int | None = None,
) -> list[StoreReport]:
    """Stage one for each target, or for every prepared one if none is named; see
    `pipeline.precompute.precompute`. Under torchrun the ranks share the work.
    """
    places, execution = places or Places(), execution or choose_execution()
    share = Share.from_environment()
    jobs = _jobs(targets, sources, views, augmentation or Augmentation(), places, limit, top_k, say)
    return [
        report
        for job in jobs
        for report in precompute(job, cache_dir=places.cache_dir, execution=execution, share=share, say=say)
    ]


def run_estimate(
    targets: Sequence[str],
    sources: Sequence[str],
    *,
    views: int = DEFAULT_VIEWS,
    augmentation: Augmentation | None = None,
    places: Places | None = None,
    execution: Execution | None = None,
    limit: int | None = None,
    say: Say = print,
    top_k: int | None = None,
) -> list[dict[str, Any]]:
    """What `run_precompute` would cost; see `pipeline.estimate.estimate`."""
    places, execution = places or Places(), execution or choose_execution()
    jobs = _jobs(targets, sources, views, augmentation or Augmentation(), places, limit, top_k, say)
    return [
        {"target": job.name, **row}
        for job in jobs
        for row in estimate(job, cache_dir=places.cache_dir, execution=execution, say=say)
    ]


def _jobs(
    targets: Sequence[str],
    sources: Sequence[str],
    views: int,
    augmentation: Augmentation,
    places: Places,
    limit: int | None,
    top_k: int | None,
    say: Say,
) -> list[Job]:
    """One job a target, or one for each part of a clip that some sources look at; everything is opened before
    the first is done, so that a wrong name costs no work.

    Raises TargetError, saying how to prepare one, if nothing is named and nothing is prepared.
    """
    names = list(targets) or prepared(places.data_dir, places.index_dir)
    if not names:
        raise TargetError(
            f"no target is prepared under {places.data_dir}; `sskt prepare --target cifar10` downloads one, "
            f"and --target imagefolder:PATH takes a folder of pictures (sskt targets lists all)"
        )
    if not targets:
        say(f"targets prepared under {places.data_dir}: {', '.join(names)}")
    specs = [parse_target(name) for name in names]
    require_named(places, sources)
    opened = _opened(sources, places, say)
    jobs = []
    for name, spec in zip(names, specs, strict=True):
        index = open_index(name, "train", places=places, say=say, limit=limit)
        plan = augmentation.training_plan(spec)
        together: dict[ClipFrames | None, list[tuple[Source, InputMap]]] = {}
        for source in opened:
            input_map = augmentation.input_map(spec, source.spec)
            together.setdefault(input_map.frames, []).append((source, input_map))
        jobs += [Job(name, index, alike, plan, views, top_k) for alike in together.values()]
    return jobs


def _opened(sources: Sequence[str], places: Places, say: Say) -> list[Source]:
    """Every source once, whatever the number of its names: they would all fill the same store."""
    opened: dict[tuple[str, str], tuple[str, Source]] = {}
    for name in dict.fromkeys(sources):
        source = open_source(name, weights=places.weights.get(name), weights_dir=places.weights_dir)
        first, _ = opened.setdefault((source.spec.name, source.weights_sha256), (name, source))
        if first != name:
            say(f"{name} is the same source as {first}; it is computed once")
    return [source for _, source in opened.values()]


def require_named(places: Places, sources: Sequence[str]) -> None:
    """Raise RunError for local weights that no source of this run would read: a slip of the pen."""
    strange = sorted(set(places.weights) - set(sources))
    if strange:
        raise RunError(
            f"--weights names {strange[0]}, this run's sources are {', '.join(sources)}; "
            f"give it under the name of one of them, or leave it out"
        )
