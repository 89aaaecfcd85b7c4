"""Open a frozen source for a job: as fast as it runs here, or as the store says its rows were computed."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from torch import Tensor

from cache import Location, StoreMismatch
from cache.layout import default_block_rows
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
    """Load the source; fall back to eager, then to fp32, with a message, unless --compile or --amp was given.

    Its logits of `shown`, a few real images, are compared with plain fp32. Raises SourceError if it cannot
    run as the user insists, StoreMismatch if the way the rows of `store` were computed is wrong here.
    """
    ways = dict.fromkeys([forward, replace(forward, compiled=False), Forward("fp32", forward.batch_size)])
    refused: SourceError | None = None
    for how in ways:
        if refused is not None:
            _require_free(refused, how, execution, store)
        try:
            frozen = FrozenSource(
                source, input_map, device=execution.device, forward=how, image_px=image_px, shown=shown
            )
        except DisagreementError as error:
            refused = error
            continue
        except SourceError as error:
            if not how.compiled or execution.compiled:
                raise
            refused = error
            continue
        if refused is not None:
            log.warning(f"{refused}; it runs {how}")
        return frozen
    raise SourceError(
        f"{refused}; nothing that is computed here can be trusted, use another version of torch"
    )


def _require_free(refused: SourceError, how: Forward, execution: Execution, store: Location | None) -> None:
    """Raise what `refused` a way of computing, with its remedy, unless `how` may be taken instead."""
    if not isinstance(refused, DisagreementError):
        return
    if store is not None:
        raise StoreMismatch(
            f"{store}: its rows were computed in a way that is wrong here: {refused}; go on with it on the "
            f"machine that began it, or remove it (sskt cache prune {store}) and precompute again"
        ) from refused
    if execution.compiled and not how.compiled:
        raise SourceError(f"{refused}; leave --compile out") from refused
    if execution.compute not in (None, how.compute):
        raise SourceError(f"{refused}; leave --amp {execution.compute} out, or pass --amp fp32") from refused


def choose_forward(
    source: Source, input_map: InputMap, execution: Execution, image_px: int, n_samples: int, views: int
) -> Forward:
    """How a new store is computed; on CUDA the batch size of a forward is measured."""
    fastest = None
    if execution.batch_size is None and execution.device.type == "cuda":

        def opened(batch_size: int) -> FrozenSource:
            how = Forward(execution.precision, batch_size)
            return FrozenSource(source, input_map, device=execution.device, forward=how, image_px=image_px)

        # a forward is filled from one unit, and what that does not have is computed for nothing
        most = source.nearest_batch_size(min(_LARGEST_BATCH_SIZE, default_block_rows(n_samples)))
        first = source.nearest_batch_size(default_batch_size(execution.device))
        fastest = fastest_batch_size(opened, first=first, most=most)
    elif execution.batch_size is None:
        fastest = source.nearest_batch_size(default_batch_size(execution.device))
    return execution.forward(n_samples * views, fastest=fastest)


def recorded_forward(path: Location, made_by: dict[str, Any], execution: Execution) -> Forward:
    """How the rows of a store were computed, so that more of them come out the same.

    Raises StoreMismatch if this run asks for another precision, another batch size or the opposite of what
    was compiled, or runs on a CPU where they were computed in fp16.
    """
    recorded = Forward.from_dict(made_by)
    if recorded.compute == "fp16" and execution.device.type == "cpu":
        raise StoreMismatch(
            f"{path}: its rows were computed in fp16 on a GPU, and a CPU computes others; go on with it on a "
            f"GPU, or precompute into another --cache-dir"
        )
    asked = {
        "--amp": (execution.compute or recorded.compute, recorded.compute),
        "--batch-size": (execution.batch_size or recorded.batch_size, recorded.batch_size),
    }
    for option, (wanted, stored) in asked.items():
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
