"""Open a frozen source for a job: chosen for speed, or as the store says that its rows were computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cache.errors import StoreMismatch
from cache.files import Location
from cache.layout import default_block_rows
from pipeline.execution import Execution
from sskt.errors import SourceError
from sskt.forward import Forward, default_rows
from sskt.frozen import FrozenSource, InputMap
from sskt.sources import Source
from sskt.tuning import fastest_rows

_MOST_ROWS = 2048

Say = Callable[[str], None]


def open_teacher(
    source: Source, input_map: InputMap, forward: Forward, execution: Execution, picture_px: int, say: Say
) -> FrozenSource:
    """The source at work. Where it cannot be compiled and the user did not insist, that is said and it runs
    as it is: the logits differ in their last bits.
    """

    def opened(how: Forward) -> FrozenSource:
        return FrozenSource(source, input_map, device=execution.device, forward=how, picture_px=picture_px)

    try:
        return opened(forward)
    except SourceError as error:
        if not forward.compiled or execution.compiled:
            raise
        plain = opened(Forward(forward.compute, forward.rows))  # raises what is not the compiler's fault
        say(f"{error}; it runs without")
        return plain


def choose_forward(
    source: Source, input_map: InputMap, execution: Execution, picture_px: int, n_samples: int, views: int
) -> Forward:
    """How a new store is computed; on CUDA the rows of a forward are measured."""
    rows = None
    if execution.rows is None and execution.device.type == "cuda":

        def opened(rows: int) -> FrozenSource:
            how = Forward(execution.precision, rows)
            return FrozenSource(
                source, input_map, device=execution.device, forward=how, picture_px=picture_px
            )

        # a forward is filled from one unit, and what that does not have is computed for nothing
        most = source.nearest_rows(min(_MOST_ROWS, default_block_rows(n_samples)))
        rows = fastest_rows(opened, first=source.nearest_rows(default_rows(execution.device)), most=most)
    elif execution.rows is None:
        rows = source.nearest_rows(default_rows(execution.device))
    return execution.forward(n_samples * views, rows=rows)


def recorded_forward(path: Location, made_by: dict[str, Any], execution: Execution) -> Forward:
    """How the rows of a store were computed, so that more of them come out the same.

    Raises StoreMismatch if this run asks for another precision, another number of rows or the opposite of
    what was compiled, or runs on a CPU where they were computed in fp16.
    """
    recorded = Forward.from_dict(made_by)
    if recorded.compute == "fp16" and execution.device.type == "cpu":
        raise StoreMismatch(
            f"{path}: its rows were computed in fp16 on a GPU, and a CPU computes others; go on with it on a "
            f"GPU, or precompute into another --cache-dir"
        )
    asked = {
        "--amp": (execution.compute or recorded.compute, recorded.compute),
        "--batch-size": (execution.rows or recorded.rows, recorded.rows),
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
