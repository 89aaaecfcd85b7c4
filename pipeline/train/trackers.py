"""Where a run's figures go besides its own folder: a function of the caller's, or an experiment tracker. Trackers are
extras, imported when one is named; each is spoken to in the few calls that it shares with the others.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from cache import flatten, write_durably
from sskt.errors import RunError, SettingError

log = logging.getLogger(__name__)

OnEpoch = Callable[[Mapping[str, Any]], None]
_PROJECT = "sskt"
_IDS = "trackers.json"  # in a run's folder: by tracker, the id under which it knows the run


class Tracker(Protocol):
    """Follows one run. Under torchrun the first rank alone has any."""

    def start(self, run: Path, config: Mapping[str, Any]) -> None:
        """The run in folder `run` starts, or continues after a stop."""

    def log_epoch(self, figures: Mapping[str, Any]) -> None:
        """An epoch has ended; `figures` is its line of metrics.jsonl. Epochs that a run repeats after a kill are
        reported again.
        """

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """The run has ended: its summary, or None if it was stopped."""


def open_trackers(trackers: str | Tracker | Sequence[str | Tracker], on_epoch: OnEpoch | None) -> list[Tracker]:
    """Trackers, some of them by name, and the caller's function. Raises SettingError, naming the extra, for one
    that is not installed.
    """
    several = [trackers] if isinstance(trackers, str) or hasattr(trackers, "log_epoch") else list(trackers)  # type: ignore[arg-type]
    found: list[Tracker] = [_named(each) if isinstance(each, str) else each for each in several]
    return found + ([_Function(on_epoch)] if on_epoch is not None else [])


def _named(name: str) -> Tracker:
    if name not in TRACKERS:
        raise SettingError("trackers", f"names {name!r}, expected one of {', '.join(TRACKERS)}")
    if importlib.util.find_spec(name) is None:
        raise SettingError("trackers", f"names {name}, which is not installed; run pip install 'sskt[{name}]'")
    return _Guarded(name, TRACKERS[name](importlib.import_module(name)))


class _Function:
    """A function of the caller's, called after every epoch; what it raises ends the run."""

    def __init__(self, on_epoch: OnEpoch) -> None:
        self._on_epoch = on_epoch

    def start(self, run: Path, config: Mapping[str, Any]) -> None:
        """Nothing to do."""

    def log_epoch(self, figures: Mapping[str, Any]) -> None:
        """See `Tracker.log_epoch`."""
        self._on_epoch(dict(figures))

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Nothing to do."""


class _Guarded:
    """A named tracker: what it raises when it starts is an error of the user's; later it costs the tracking, never
    the run.
    """

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name, self._tracker = name, tracker
        self._works = True

    def start(self, run: Path, config: Mapping[str, Any]) -> None:
        """See `Tracker.start`. Raises RunError."""
        try:
            self._tracker.start(run, config)
        except Exception as error:
            raise RunError(
                f"--tracker {self._name} cannot start ({' '.join(str(error).split()) or type(error).__name__}); "
                f"set it up, or leave it out"
            ) from error

    def log_epoch(self, figures: Mapping[str, Any]) -> None:
        """See `Tracker.log_epoch`."""
        self._do(self._tracker.log_epoch, figures)

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """See `Tracker.finish`."""
        self._do(self._tracker.finish, summary)

    def _do(self, act: Callable[[Any], None], what: Any) -> None:
        if not self._works:
            return
        try:
            act(what)
        except Exception as error:  # noqa: BLE001 - foreign code; the run is worth more
            self._works = False
            log.warning(f"--tracker {self._name} failed ({error}); the run goes on without it")


class _Wandb:
    """Weights & Biases. WANDB_PROJECT, WANDB_MODE and the like are its own."""

    def __init__(self, package: Any) -> None:
        self._package = package
        self._run: Any = None

    def start(self, run: Path, config: Mapping[str, Any]) -> None:
        """See `Tracker.start`."""
        known = _known(run, "wandb") or _remember(run, "wandb", uuid.uuid4().hex[:12])
        project = os.environ.get("WANDB_PROJECT", _PROJECT)
        self._run = self._package.init(
            project=project, id=known, name=run.name, config=dict(config), dir=str(run), resume="allow"
        )

    def log_epoch(self, figures: Mapping[str, Any]) -> None:
        """See `Tracker.log_epoch`."""
        self._run.log(_numbers(figures), step=figures["epoch"])

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """See `Tracker.finish`."""
        if summary is not None:
            self._run.summary.update(dict(summary))
        self._run.finish(exit_code=0 if summary is not None else 1)


class _Trackio:
    """Trackio, which knows a run by its name."""

    def __init__(self, package: Any) -> None:
        self._package = package

    def start(self, run: Path, config: Mapping[str, Any]) -> None:
        """See `Tracker.start`."""
        name = _known(run, "trackio") or _remember(run, "trackio", f"{run.name}-{uuid.uuid4().hex[:4]}")
        project = os.environ.get("TRACKIO_PROJECT", _PROJECT)
        self._package.init(project=project, name=name, config=dict(config), resume="allow")

    def log_epoch(self, figures: Mapping[str, Any]) -> None:
        """See `Tracker.log_epoch`."""
        self._package.log(_numbers(figures), step=figures["epoch"])

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """See `Tracker.finish`; it keeps no summary."""
        self._package.finish()


class _Mlflow:
    """MLflow. MLFLOW_TRACKING_URI and the like are its own."""

    def __init__(self, package: Any) -> None:
        self._package = package

    def start(self, run: Path, config: Mapping[str, Any]) -> None:
        """See `Tracker.start`."""
        if known := _known(run, "mlflow"):
            self._package.start_run(run_id=known)
            return
        self._package.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT))
        started = self._package.start_run(run_name=run.name)
        _remember(run, "mlflow", started.info.run_id)
        self._package.log_params({_word(name): str(value)[:500] for name, value in flatten(dict(config))})

    def log_epoch(self, figures: Mapping[str, Any]) -> None:
        """See `Tracker.log_epoch`."""
        numbers = {_word(name): float(value) for name, value in _numbers(figures).items()}
        self._package.log_metrics(numbers, step=figures["epoch"])

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """See `Tracker.finish`."""
        self._package.end_run(status="FINISHED" if summary is not None else "KILLED")


class _Aim:
    """Aim, into the repository of the present folder or AIM_REPO."""

    def __init__(self, package: Any) -> None:
        self._package = package
        self._run: Any = None

    def start(self, run: Path, config: Mapping[str, Any]) -> None:
        """See `Tracker.start`."""
        known = _known(run, "aim")
        self._run = self._package.Run(run_hash=known, repo=os.environ.get("AIM_REPO"), experiment=_PROJECT)
        self._run.name = run.name
        self._run["hparams"] = json.loads(json.dumps(dict(config)))
        if known is None:
            _remember(run, "aim", self._run.hash)

    def log_epoch(self, figures: Mapping[str, Any]) -> None:
        """See `Tracker.log_epoch`."""
        for name, value in _numbers(figures).items():
            self._run.track(value, name=name, step=figures["epoch"], epoch=figures["epoch"])

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """See `Tracker.finish`."""
        if summary is not None:
            self._run["summary"] = json.loads(json.dumps(dict(summary)))
        self._run.close()


TRACKERS: Mapping[str, Callable[[Any], Tracker]] = {
    "wandb": _Wandb,
    "mlflow": _Mlflow,
    "trackio": _Trackio,
    "aim": _Aim,
}


def _numbers(figures: Mapping[str, Any]) -> dict[str, int | float]:
    """The figures of an epoch that are numbers, without its own."""
    return {
        name: value
        for name, value in figures.items()
        if name != "epoch" and isinstance(value, int | float) and not isinstance(value, bool)
    }


def _word(name: str) -> str:
    """A name of letters, digits and - _ . / and spaces alone, which is all that MLflow takes."""
    return re.sub(r"[^\w\-./ ]", "_", name, flags=re.ASCII)


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
