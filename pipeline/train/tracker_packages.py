"""Experiment trackers, each in the few calls of its package that follow one run (see
`pipeline.train.trackers.Tracker`). A run that continues is the same run to them.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, redirect_stdout
from pathlib import Path
from typing import Any

from cache import flatten, write_durably

log = logging.getLogger(__name__)

_PROJECT = "sskt"
_IDS = "trackers.json"  # in a run's folder: by tracker, the id under which it knows the run


class _Wandb:
    """Weights & Biases. WANDB_PROJECT, WANDB_MODE and the like are its own."""

    def __init__(self, package: Any) -> None:
        self._package = package
        self._run: Any = None

    def start(self, run: Path, config: Mapping[str, Any]) -> None:
        """See `pipeline.train.trackers.Tracker.start`."""
        known = _known(run, "wandb") or _remember(run, "wandb", os.urandom(6).hex())
        project = os.environ.get("WANDB_PROJECT", _PROJECT)
        self._run = self._package.init(
            project=project, id=known, name=run.name, config=dict(config), dir=str(run), resume="allow"
        )

    def log_epoch(self, figures: Mapping[str, Any]) -> None:
        """See `pipeline.train.trackers.Tracker.log_epoch`."""
        self._run.log(_numbers(figures), step=figures["epoch"])

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """See `pipeline.train.trackers.Tracker.finish`."""
        if summary is not None:
            self._run.summary.update(dict(summary))
        self._run.finish(exit_code=0 if summary is not None else 1)


class _Trackio:
    """Trackio, which knows a run by its name."""

    def __init__(self, package: Any) -> None:
        self._package = package

    def start(self, run: Path, config: Mapping[str, Any]) -> None:
        """See `pipeline.train.trackers.Tracker.start`."""
        name = _known(run, "trackio") or _remember(run, "trackio", f"{run.name}-{os.urandom(2).hex()}")
        project = os.environ.get("TRACKIO_PROJECT", _PROJECT)
        with _stdout_is_ours():
            self._package.init(project=project, name=name, config=dict(config), resume="allow")

    def log_epoch(self, figures: Mapping[str, Any]) -> None:
        """See `pipeline.train.trackers.Tracker.log_epoch`."""
        self._package.log(_numbers(figures), step=figures["epoch"])

    def finish(self, summary: Mapping[str, Any] | None) -> None:  # noqa: ARG002
        """See `pipeline.train.trackers.Tracker.finish`; it keeps no summary."""
        with _stdout_is_ours():
            self._package.finish()


class _Mlflow:
    """MLflow. MLFLOW_TRACKING_URI and the like are its own."""

    def __init__(self, package: Any) -> None:
        self._package = package

    def start(self, run: Path, config: Mapping[str, Any]) -> None:
        """See `pipeline.train.trackers.Tracker.start`."""
        # first: MLflow says neither where it writes nor that it waits for a server, minutes if that is down
        log.info(f"mlflow: sends figures to {self._package.get_tracking_uri()}")
        if known := _known(run, "mlflow"):
            self._package.start_run(run_id=known)
            return
        self._package.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT))
        started = self._package.start_run(run_name=run.name)
        _remember(run, "mlflow", started.info.run_id)
        self._package.log_params({_word(name): str(value)[:500] for name, value in flatten(dict(config))})

    def log_epoch(self, figures: Mapping[str, Any]) -> None:
        """See `pipeline.train.trackers.Tracker.log_epoch`."""
        numbers = {_word(name): float(value) for name, value in _numbers(figures).items()}
        self._package.log_metrics(numbers, step=figures["epoch"])

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """See `pipeline.train.trackers.Tracker.finish`."""
        with _stdout_is_ours():
            self._package.end_run(status="FINISHED" if summary is not None else "KILLED")


class _Aim:
    """Aim, into the repository of the present folder or AIM_REPO."""

    def __init__(self, package: Any) -> None:
        self._package = package
        self._run: Any = None

    def start(self, run: Path, config: Mapping[str, Any]) -> None:
        """See `pipeline.train.trackers.Tracker.start`."""
        known = _known(run, "aim")
        self._run = self._package.Run(run_hash=known, repo=os.environ.get("AIM_REPO"), experiment=_PROJECT)
        self._run.name = run.name
        self._run["hparams"] = json.loads(json.dumps(dict(config)))
        if known is None:
            _remember(run, "aim", self._run.hash)

    def log_epoch(self, figures: Mapping[str, Any]) -> None:
        """See `pipeline.train.trackers.Tracker.log_epoch`."""
        for name, value in _numbers(figures).items():
            self._run.track(value, name=name, step=figures["epoch"], epoch=figures["epoch"])

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """See `pipeline.train.trackers.Tracker.finish`."""
        if summary is not None:
            self._run["summary"] = json.loads(json.dumps(dict(summary)))
        self._run.close()


TRACKERS: Mapping[str, Callable[[Any], Any]] = {
    "wandb": _Wandb,
    "mlflow": _Mlflow,
    "trackio": _Trackio,
    "aim": _Aim,
}


def _stdout_is_ours() -> AbstractContextManager[Any]:
    """What a package prints meanwhile goes to stderr; stdout is for what a command has made."""
    return redirect_stdout(sys.stderr)


def _numbers(figures: Mapping[str, Any]) -> dict[str, int | float]:
    """The figures of an epoch that are numbers, without its own."""
    return {
        name: value
        for name, value in figures.items()
        if name != "epoch" and isinstance(value, int | float) and not isinstance(value, bool)
    }


def _word(name: str) -> str:
    """A name of letters, digits and - _ . / and spaces alone, which is all that MLflow takes."""
    return "".join(each if each.isascii() and (each.isalnum() or each in "_-./ ") else "_" for each in name)


def _known(run: Path, tracker: str) -> str | None:
    """The id under which a tracker knows a run."""
    return _ids(run).get(tracker)


def _remember(run: Path, tracker: str, known: str) -> str:
    ids = _ids(run) | {tracker: known}
    write_durably(run / _IDS, (json.dumps(ids, indent=2) + "\n").encode())
    return known


def _ids(run: Path) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads((run / _IDS).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return found
