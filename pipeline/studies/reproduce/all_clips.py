"""The metrics of published video rows: a student scored over all clips of the test split, as in SSKT's
released test script, or over a number of them.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from cache import write_durably
from pipeline.runtime import Execution, Paths, join_world
from pipeline.train import ALL_CLIPS, evaluate

ALL_CLIPS_METRIC = "test_top1_all_clips"


def score_clips(folder: Path, paths: Paths, execution: Execution, clips: int | str = ALL_CLIPS) -> None:
    """Score a finished run and save the result in its folder, unless that was done already."""
    path = _file(folder, clips)
    with join_world(execution.device) as world:
        if world.is_first and not path.is_file():
            where = replace(paths, weights={})
            figures = evaluate(folder, paths=where, execution=execution, clips=clips)
            scores = {name: value for name, value in figures.items() if name.startswith(("test_", "n_"))}
            write_durably(path, (json.dumps(scores, indent=2) + "\n").encode())
        world.broadcast(value=True)  # wait until the first rank has written


def add_clip_scores(
    summary: dict[str, Any], folder: Path, clips: int | str = ALL_CLIPS
) -> dict[str, Any] | None:
    """`summary` plus the scores of the run in `folder`, in percent, by names such as ALL_CLIPS_METRIC; None
    if they are not known yet.
    """
    try:
        scores = json.loads(_file(folder, clips).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    named = {name: value for name, value in scores.items() if name.startswith("test_")}
    return summary | {f"{name}_{clips}_clips": value for name, value in named.items()}


def _file(folder: Path, clips: int | str) -> Path:
    return folder / f"{clips}-clips.json"
