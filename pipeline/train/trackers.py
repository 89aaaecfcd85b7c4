"""Where a run's figures go besides its own folder: a function of the caller's, or an experiment tracker.
Trackers are extras, imported when one is named.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline.train.tracker_packages import TRACKERS
from sskt.errors import RunError, SettingError

log = logging.getLogger(__name__)

OnEpoch = Callable[[Mapping[str, Any]], None]


class Tracker(Protocol):
    """Follows one run. Under torchrun the first rank alone has any."""

    def start(self, run: Path, config: Mapping[str, Any]) -> None:
        """The run in folder `run` starts, or continues after a stop."""

    def log_epoch(self, figures: Mapping[str, Any]) -> None:
        """An epoch has ended; `figures` is its line of metrics.jsonl. Epochs that a run repeats after a kill
        are reported again.
        """

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """The run has ended: its summary, or None if it was stopped."""


def open_trackers(
    trackers: str | Tracker | Sequence[str | Tracker], on_epoch: OnEpoch | None
) -> list[Tracker]:
    """Who follows a run: trackers of the caller's or by name ("wandb", "mlflow", "trackio", "aim"), and a
    function that gets every epoch's line of metrics.jsonl; what that raises ends the run, which can be
    resumed. Raises SettingError, naming the extra, for a tracker that is not installed.
    """
    several: list[str | Tracker] = []
    if isinstance(trackers, Sequence) and not isinstance(trackers, str):
        several += trackers
    else:
        several.append(trackers)
    found: list[Tracker] = [_named(each) if isinstance(each, str) else each for each in several]
    return found + ([_Function(on_epoch)] if on_epoch is not None else [])


def _named(name: str) -> Tracker:
    if name not in TRACKERS:
        raise SettingError("trackers", f"names {name!r}, expected one of {', '.join(TRACKERS)}")
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:  # none: a folder of that name, such as wandb leaves where it ran
        raise SettingError(
            "trackers", f"names {name}, which is not installed; run pip install 'sskt[{name}]'"
        )
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
    """A named tracker: what it raises when it starts is an error of the user's; later it costs the tracking,
    never the run.
    """

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name, self._tracker = name, tracker
        self._works = True

    def start(self, run: Path, config: Mapping[str, Any]) -> None:
        """See `Tracker.start`. Raises RunError."""
        try:
            self._tracker.start(run, config)
        except Exception as error:
            why = " ".join(str(error).split()) or type(error).__name__
            raise RunError(
                f"--tracker {self._name} cannot start ({why}); set it up, or leave it out"
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
