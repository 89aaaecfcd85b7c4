"""Runs below some folders: what each came to, and in which settings they differ."""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cache import Location, flatten, is_file, names_in, subfolders
from cache.errors import FolderClosed
from pipeline.runtime import coerce
from pipeline.train import Settings, read_config, read_metrics, read_summary, with_defaults
from sskt.errors import RunError

log = logging.getLogger(__name__)

RUN_FILES = ("environment.json", "metrics.jsonl")  # beside config.json, which other programs write too
METRICS = ("test_top1", "test_map")
_ALWAYS = ("target", "model", "method", "seed")  # columns of every table
_ABOUT = (*_ALWAYS, "limit", "finetune_from", "augmentation")
_HEADINGS = {
    "augmentation.seed": "plan_seed",
    "augmentation.kind": "plan",
    "augmentation.side_px": "size",
    "augmentation.source_side_px": "source_size",
    "augmentation.n_frames": "clip_frames",
}


def list_runs(folders: Location | str | Sequence[Location | str] = "runs") -> list[dict[str, Any]]:
    """One row per run in or below `folders`, or URLs: run, state, target, model, method, seed, its metric in
    percent (None before it is known), epoch_s, and under `settings` every setting by name. Sorted by target,
    then by the metric, best first. A run whose files cannot be read has its error under `state`.

    Raises RunError if a folder is missing, or there is no run.
    """
    places, visited = coerce.places(folders, "folders"), set[Location]()
    for place in places:
        if not names_in(place):
            raise RunError(f"{place}: is no folder, or an empty one; give runs, or folders that hold some")
    found = [run for place in places for run in _below(place, visited)]
    if not found:
        raise RunError(f"there is no run below {', '.join(map(str, places))}; sskt train prints its folder")
    return sorted(map(_row, found), key=_rank)


def differing(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The settings in which some rows of `list_runs` differ, but for those that have a column in any case."""
    every = [row["settings"] for row in rows if row["settings"]]
    names = dict.fromkeys(name for settings in every for name in settings)
    return [
        name
        for name in names
        if name not in _ALWAYS and len({json.dumps(settings.get(name)) for settings in every}) > 1
    ]


def over_seeds(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Finished runs that differ in nothing but their seed, as one row each: the mean and the standard
    deviation of the metric (None for one run), best first.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["state"] == "finished" and value_of(row) is not None:
            key = json.dumps({name: value for name, value in row["settings"].items() if name != "seed"})
            groups.setdefault(key, []).append(row)
    found = []
    for group in groups.values():
        values = [float(value_of(row) or 0.0) for row in group]
        found.append(
            {
                **{name: group[0][name] for name in ("target", "model", "method")},
                "settings": group[0]["settings"],
                "runs": len(group),
                "mean": statistics.mean(values),
                "std": statistics.stdev(values) if len(values) > 1 else None,
            }
        )
    return sorted(found, key=lambda row: (row["target"], -row["mean"]))


def value_of(row: Mapping[str, Any]) -> float | None:
    """The metric of a row of `list_runs`, in percent."""
    return next((row[name] for name in METRICS if row.get(name) is not None), None)


def heading(name: str) -> str:
    """A setting's name above a column: that of its option, such as source size."""
    return _HEADINGS.get(name, name.removeprefix("augmentation.")).replace("_", " ")


def text_of(value: Any) -> str:
    """A setting's value in a table."""
    if isinstance(value, list | tuple):
        return " + ".join(map(text_of, value)) or "none"
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _below(folder: Location, visited: set[Location]) -> Iterable[Location]:
    """The runs in or below a folder; runs hold none. A folder with several links is visited once."""
    if (real := folder.resolve()) in visited:
        return
    visited.add(real)
    names = names_in(folder)
    if "config.json" in names and any(name in names for name in RUN_FILES):
        yield folder
        return
    for place in subfolders(folder):
        try:
            yield from _below(place, visited)
        except FolderClosed as closed:
            log.warning(str(closed))


def _row(run: Location) -> dict[str, Any]:
    try:
        config = with_defaults(read_config(run))
        metrics = read_metrics(run)
        summary = read_summary(run)
    except (RunError, ValueError, OSError) as error:
        return {"run": str(run), "state": f"damaged: {error}", "target": "", "settings": {}}
    last = summary or (metrics[-1] if metrics else {})
    shown = {name: last.get(name, last.get(name.replace("test", "val", 1))) for name in METRICS}
    return {
        "run": str(run),
        "state": _state(run, config, summary is not None, len(metrics)),
        **{name: config.get(name) for name in _ALWAYS},
        **{name: value for name, value in shown.items() if value is not None},
        **{f"best_{name}": last[f"best_{name}"] for name in METRICS if f"best_{name}" in last},
        "epoch_s": statistics.median(each["epoch_s"] for each in metrics) if metrics else None,
        "settings": _settings(config),
    }


def _state(run: Location, config: Mapping[str, Any], finished: bool, done: int) -> str:
    if finished:
        return "finished"
    stopped = "diverged" if is_file(run / "diverged.json") else "not finished"
    return f"{stopped}, {done} of {config.get('epochs')} epochs"


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a user could have said, flat; what the machine or the data decided is left out."""
    names = [*_ABOUT, *(name for name in Settings.__annotations__ if name in config)]
    chosen = {name: config.get(name) for name in names if name not in ("compiled", "preset")}
    return dict(flatten(chosen))


def _rank(row: Mapping[str, Any]) -> tuple[Any, ...]:
    value = value_of(row)
    return row["target"] or "~", value is None, -(value or 0.0), row["run"]
