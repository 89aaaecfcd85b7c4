"""A run by its folder: made, gone on with, or left alone, so that a series of runs can be started again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.api.stage_two import resume_train, run_train
from pipeline.run import read_summary


def train_once(target: str, out: Path, **settings: Any) -> dict[str, Any]:
    """The summary of the run in `out`: of `run_train(target, out=out, **settings)` if there is none yet, of
    `resume_train` if it was stopped, else as it is.

    The checkpoint of a finished run is removed: a series of runs would fill a disk with what nobody goes on
    from. Raises what those two raise.
    """
    summary = read_summary(out)
    if summary is not None:
        return summary
    if (out / "config.json").is_file():
        summary = resume_train(out, execution=settings["execution"], say=settings["say"])
    else:
        summary = run_train(target, out=out, **settings)
    (out / "last.pt").unlink(missing_ok=True)
    return summary
