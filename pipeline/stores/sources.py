"""Open a frozen source for a job: as fast as it runs here, or as a store's existing rows were computed."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from torch import Tensor

from cache import Location, StoreMismatch, default_block_rows
from pipeline.runtime import Execution
from sskt.errors import SourceError
from sskt.sources import (
    DisagreementError,
    Forward,
    FrozenSource,
    InputMap,
    Source,
    default_batch_size,
    fastest_batch_size,
    open_outputs,
)

log = logging.getLogger(__name__)

_LARGEST_BATCH_SIZE = 2048


def open_frozen(
    source: Source,
    input_map: InputMap,
    forward: Forward,
    execution: Execution,
    image_px: int,
    *,
    shown: Tensor | None = None,
    store: Location | None = None,
) -> FrozenSource:
    """Load the source, or `forward.outputs` of its network if there are any; fall back to eager, then to
    fp32, with a message, unless --compile or --amp was given.

    Its logits for `shown`, a few real images, are compared with plain fp32. Raises SourceError if it cannot
    run as the user insists, StoreMismatch if this machine cannot compute rows as those of `store` were.
    """
    if source.runs_itself and (execution.compute not in (None, "fp32") or execution.compiled):
        option = "--compile" if execution.compiled else f"--amp {execution.compute}"
        raise SourceError(
            f"{source.spec.name} runs as it was exported, in a runtime of its own; leave {option} out, or "
            f"give it to the other sources in a command of their own"
        )
    if forward.outputs and source.outputs != forward.outputs:
        source = open_outputs(source, forward.outputs)
    uncompiled = replace(forward, compiled=False)
    attempts = dict.fromkeys([forward, uncompiled, replace(uncompiled, compute="fp32")])
    failure: SourceError | None = None
    for attempt in attempts:
        if failure is not None:
            _require_may_fall_back(failure, attempt, execution, store)
        try:
            frozen = FrozenSource(
                source, input_map, device=execution.device, forward=attempt, image_px=image_px, shown=shown
            )
        except DisagreementError as error:
            failure = error
            continue
        except SourceError as error:
            if not attempt.compiled or execution.compiled:
                raise
            failure = error
            continue
        if failure is not None:
            log.warning(f"{failure}; it runs {attempt}")
        return frozen
    raise SourceError(
        f"{failure}; nothing that is computed here can be trusted, use another version of torch"
    )


def _require_may_fall_back(
    failure: SourceError, fallback: Forward, execution: Execution, store: Location | None
) -> None:
    """Raise the `failure` of the previous attempt, with its remedy, unless `fallback` may replace it."""
    if not isinstance(failure, DisagreementError):
        return
    if store is not None:
        raise StoreMismatch(
            f"{store}: its rows were computed in a way that is wrong here: {failure}; go on with it on the "
            f"machine that began it, or remove it (sskt cache prune {store}) and precompute again"
        ) from failure
    if execution.compiled and not fallback.compiled:
        raise SourceError(f"{failure}; leave --compile out") from failure
    if execution.compute not in (None, fallback.compute):
        raise SourceError(f"{failure}; leave --amp {execution.compute} out, or pass --amp fp32") from failure


def choose_forward(
    source: Source,
    input_map: InputMap,
    execution: Execution,
    image_px: int,
    n_samples: int,
    views: int,
    *,
    n_step: int | None = None,
) -> Forward:
    """Choose how a new store is computed; on CUDA the fastest batch size is measured, unless rows come from
    training steps of `n_step` samples.
    """
    fastest = None
    if n_step is not None:
        fastest = step_batch_size(source, input_map, execution, n_step)
    elif execution.batch_size is None and execution.device.type == "cuda":

        def open_with(batch_size: int) -> FrozenSource:
            forward = Forward(execution.precision, batch_size)
            return FrozenSource(
                source, input_map, device=execution.device, forward=forward, image_px=image_px
            )

        # a forward's images all come from one unit, whose second half is computed while another is written
        n_unit = default_block_rows(n_samples) * _images_per_sample(input_map)
        most = source.nearest_batch_size(min(_LARGEST_BATCH_SIZE, -(-n_unit // 2)))
        first = source.nearest_batch_size(default_batch_size(execution.device))
        measured = fastest_batch_size(open_with, first=first, most=most)
        fastest = source.nearest_batch_size(_even_part(n_unit, measured))
    elif execution.batch_size is None:
        fastest = source.nearest_batch_size(default_batch_size(execution.device))
    return execution.forward(n_samples * views, fastest=fastest)


def step_batch_size(source: Source, input_map: InputMap, execution: Execution, n_step: int) -> int:
    """Images per forward where a source is asked about the `n_step` samples of a training step: on CUDA all
    of them, as far as memory may be expected to allow.
    """
    if execution.device.type == "cpu":
        return source.nearest_batch_size(default_batch_size(execution.device))
    n_images = n_step * _images_per_sample(input_map)
    return source.nearest_batch_size(_even_part(n_images, _LARGEST_BATCH_SIZE))


def warn_of_padding(store: Location, frozen: FrozenSource, execution: Execution, n_step: int) -> None:
    """Warn if a store's rows are computed so many at a time that training steps of `n_step` samples waste
    most of every forward.
    """
    if execution.device.type == "cpu":  # whose forwards are small
        return
    n, n_asked = (
        frozen.forward.batch_size,
        step_batch_size(frozen.source, frozen.input_map, execution, n_step),
    )
    if n >= 2 * n_asked:
        log.warning(
            f"{store}: its images are computed {n} at a time, and a step has {n_asked}, so every step pays "
            f"for {n}; fill it with `sskt precompute` instead"
        )


def _images_per_sample(input_map: InputMap) -> int:
    return 1 if input_map.frames is None else input_map.frames.k


def _even_part(n: int, most: int) -> int:
    """The largest of `n` and its half, quarter and so on, rounded up, that is at most `most`: what is padded
    is next to nothing, and a batch for one source is a whole number of forwards of another.
    """
    n_parts = 1
    while -(-n // n_parts) > most:
        n_parts *= 2
    return -(-n // n_parts)


def recorded_forward(path: Location, made_by: dict[str, Any], execution: Execution) -> Forward:
    """How a store's rows were computed, so that new rows are computed alike.

    Raises StoreMismatch if this run insists on another precision, batch size or compilation, or runs on a CPU
    although the rows were computed in fp16.
    """
    recorded = Forward.from_dict(made_by)
    if recorded.compute == "fp16" and execution.device.type == "cpu":
        raise StoreMismatch(
            f"{path}: its rows were computed in fp16 on a GPU, and a CPU computes others; go on with it on a "
            f"GPU, or precompute into another --cache-dir"
        )
    settings = {
        "--amp": (execution.compute or recorded.compute, recorded.compute),
        "--batch-size": (execution.batch_size or recorded.batch_size, recorded.batch_size),
    }
    for option, (wanted, stored) in settings.items():
        if wanted != stored:
            raise StoreMismatch(
                f"{path}: its rows were computed with {option} {stored}, this run would add rows with "
                f"{wanted}; pass {option} {stored}, or remove the store with its folder to start over"
            )
    if execution.compiled is not None and execution.compiled != recorded.compiled:
        was, option = ("compiled", "--compile") if recorded.compiled else ("not compiled", "--no-compile")
        raise StoreMismatch(
            f"{path}: its rows were computed by a network that was {was}; pass {option}, or leave it out"
        )
    return recorded
