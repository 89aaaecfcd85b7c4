"""The figure of a published row of videos: its student's answers over all clips of the test split, as the
released test script has it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from cache import write_durably
from pipeline.runtime import Execution, Paths, join_world
from pipeline.train.evaluate import ALL_CLIPS
from pipeline.train.run import evaluate

ALL_CLIPS_METRIC = "test_top1_all_clips"

_FILE = "all-clips.json"  # in the run's folder


def score_all_clips(folder: Path, paths: Paths, execution: Execution) -> None:
    """Keep beside a finished run what its student comes to; nothing is done where that is known already."""
    with join_world(execution.device) as world:
        if world.is_first and not (folder / _FILE).is_file():
            where = replace(paths, weights={})
            figures = evaluate(folder, paths=where, execution=execution, clips=ALL_CLIPS)
            kept = {name: value for name, value in figures.items() if name.startswith(("test_", "n_"))}
            write_durably(folder / _FILE, (json.dumps(kept, indent=2) + "\n").encode())
        world.broadcast(value=True)  # nobody reads what the first has not written yet


def with_all_clips(summary: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """The summary of the run in `folder` with ALL_CLIPS_METRIC, in percent; None if it is not known yet."""
    try:
        kept = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return summary | {ALL_CLIPS_METRIC: kept["test_top1"]}
