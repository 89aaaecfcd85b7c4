"""A run by its folder: made, gone on with, or left alone, so that a series of runs can be started again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.api.lesson import Supervision
from pipeline.api.settings import Tuning, settings_of
from pipeline.api.stage_two import resume_train, run_train
from pipeline.run import read_config, read_summary
from sskt.errors import RunError


def train_once(target: str, out: Path, **asked: Any) -> dict[str, Any]:
    """The summary of the run in `out`: of `run_train(target, out=out, **asked)` if there is none yet, of
    `resume_train` if it was stopped, else as it is.

    The checkpoint of a finished run is removed: a series of runs would fill a disk with what nobody goes on
    from. Raises RunError if the run in `out` is another than the one asked for, and what those two raise.
    """
    if not (out / "config.json").is_file():
        summary = run_train(target, out=out, **asked)
    else:
        _require_asked(target, out, asked)
        finished = read_summary(out)
        summary = finished or resume_train(out, execution=asked["execution"], say=asked["say"])
    (out / "last.pt").unlink(missing_ok=True)
    return summary


def _require_asked(target: str, out: Path, asked: Mapping[str, Any]) -> None:
    """Raise RunError, naming the first setting in which the run in `out` is another."""
    taught, tuning = asked["supervision"], asked.get("tuning") or Tuning()
    assert isinstance(taught, Supervision)  # noqa: S101 - every series says how its students are taught
    wanted = settings_of(target, taught, tuning, asked.get("overrides") or {}) | {
        "target": target,
        "method": taught.method,
        "transfer_module": taught.transfer_module,
        "seed": asked.get("seed", 0),
        "limit": asked.get("limit"),
    }
    if taught.sources:
        wanted["sources"] = taught.sources
    if taught.views is not None:
        wanted["views"] = taught.views
    found = read_config(out)
    for name, value in wanted.items():
        there = tuple(found[name]) if isinstance(found.get(name), list) else found.get(name)
        if there != (tuple(value) if isinstance(value, list) else value):
            raise RunError(
                f"{out}: was begun with {name} {there}, this series asks for {value}; choose another --out"
            )
