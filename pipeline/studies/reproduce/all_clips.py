"""The metric of published video rows: the student scored over all clips of the test split, as in the released
test script.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from cache import write_durably
from pipeline.runtime import Execution, Paths, join_world
from pipeline.train.evaluate import ALL_CLIPS
from pipeline.train.score_run import evaluate

ALL_CLIPS_METRIC = "test_top1_all_clips"

_FILE = "all-clips.json"  # in the run's folder


def score_all_clips(folder: Path, paths: Paths, execution: Execution) -> None:
    """Score a finished run and save the result in its folder, unless that was done already."""
    with join_world(execution.device) as world:
        if world.is_first and not (folder / _FILE).is_file():
            where = replace(paths, weights={})
            figures = evaluate(folder, paths=where, execution=execution, clips=ALL_CLIPS)
            scores = {name: value for name, value in figures.items() if name.startswith(("test_", "n_"))}
            write_durably(folder / _FILE, (json.dumps(scores, indent=2) + "\n").encode())
        world.broadcast(value=True)  # wait until the first rank has written


def add_all_clips(summary: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """`summary` plus ALL_CLIPS_METRIC of the run in `folder`, in percent; None if it is not known yet."""
    try:
        scores = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return summary | {ALL_CLIPS_METRIC: scores["test_top1"]}
