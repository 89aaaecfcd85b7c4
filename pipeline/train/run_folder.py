"""A run directory: settings, environment, results (docs/method.md, promise 7).

config.json and environment.json; metrics.jsonl, one line per epoch, and TensorBoard events, with settings and
example images; trackers.json, the ids of trackers that follow it; last.pt, the checkpoint; best.safetensors
and student.safetensors, backbone and primary head of the best and the last epoch, or of a pretext task
best.safetensors and encoder.safetensors, the backbone alone; probe.safetensors, the probe that teaches the
student; summary.json, which marks a finished run, or diverged.json. Each file except the logs is written
completely or not at all, and flushed to disk. At a URL logs are written at each checkpoint and at the end.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self, TypeVar

import torch
from safetensors.torch import load, save
from torch.utils.tensorboard import SummaryWriter

from cache import (
    TEMPORARY,
    CacheError,
    Location,
    is_file,
    names_in,
    read_file,
    read_files,
    require_bucket,
    write_durably,
)
from pipeline.runtime.lock import LOCK, alone_in
from pipeline.source_outputs.fit_probe import RunProbe
from pipeline.train.run_records import environment, log_settings
from pipeline.train.trackers import Tracker
from sskt.errors import RunError
from sskt.students import PRETEXTS

STUDENTS = ("last", "best")
_PROBE, _TRACKERS = "probe.safetensors", "trackers.json"
ENCODER = "encoder.safetensors"
T = TypeVar("T")
_STUDENT_FILES = {"last": "student.safetensors", "best": "best.safetensors", "encoder": ENCODER}


class RunBusyError(RunError):
    """Another process trains this run."""


class Run:
    """A run directory, open for writing by this process only."""

    def __init__(self, path: Location) -> None:
        """Lock the directory. Raises RunBusyError if another process has. Use `begin` or `go_on`."""
        self.path = path
        self._started: list[Tracker] = []  # those that wait for the end of the run
        self._opened = ExitStack()
        self._logs = path if isinstance(path, Path) else self._local_logs(path)
        with _writing(path):
            try:
                self._opened.enter_context(alone_in(path))
            except BlockingIOError:
                raise RunBusyError(
                    f"{path}: another process trains this run; wait until it has finished, or stop it"
                ) from None

    @classmethod
    def begin(
        cls,
        path: Location,
        config: Mapping[str, Any],
        paths: Mapping[str, Any],
        probe: RunProbe | None = None,
        trackers: Sequence[Tracker] = (),
    ) -> Self:
        """Create the directory; `trackers` follow the run. Raises RunError if it already holds a run or
        cannot be written, RunBusyError if another process has just started one there.
        """
        if isinstance(path, Path):
            with _writing(path):
                path.mkdir(parents=True, exist_ok=True)
        _require_new(path)  # also before the lock, which leaves a file
        run = cls(path)
        try:
            _require_new(path)
            _write_json(path / "environment.json", environment() | {"places": dict(paths)})
            if probe is not None:
                _write(path / _PROBE, probe.to_bytes())
            _write_json(path / "config.json", config)
            run._open_logs(())
            log_settings(run._events, config)
            run._follow(trackers, config)
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def go_on(
        cls, path: Location, history: Sequence[Mapping[str, Any]], trackers: Sequence[Tracker] = ()
    ) -> Self:
        """Reopen a run that was stopped after the epochs of `history`; later lines of its logs are dropped.
        Raises RunBusyError if another process still trains it.
        """
        run = cls(path)
        try:
            run._open_logs(history)
            run._follow(trackers, read_config(path))
        except BaseException:
            run.close()
            raise
        return run

    def log_epoch(self, metrics: Mapping[str, Any]) -> None:
        """Append one epoch's figures to metrics.jsonl and to the TensorBoard events."""
        with _writing(self._logs / "metrics.jsonl"):
            self._metrics.write(json.dumps(metrics) + "\n")
            self._metrics.flush()
        for name, value in metrics.items():
            if isinstance(value, int | float) and name != "epoch":
                self._events.add_scalar(name, value, metrics["epoch"])
        for tracker in self._started:
            tracker.log_epoch(metrics)

    def log_images(self, name: str, images: torch.Tensor) -> None:
        """Show images, uint8 (N, H, W, 3), in TensorBoard."""
        self._events.add_images(name, images, dataformats="NHWC")

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace last.pt by `state`: plain data and tensors, which load with `weights_only=True`."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        _write(self.path / "last.pt", buffer.getvalue())
        self._copy_logs()

    def save_student(self, state: Mapping[str, torch.Tensor], which: str = "last") -> None:
        """Write an exported student, without source heads; `which` is one of STUDENTS, or "encoder"."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        _write(self.path / _STUDENT_FILES[which], save(tensors))

    def save_divergence(self, found: Mapping[str, Any]) -> str:
        """Write diverged.json, the step and samples at which a run diverged; returns its name."""
        _write_json(self.path / "diverged.json", found)
        return "diverged.json"

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, which marks the run as finished."""
        self._copy_logs()
        _write_json(self.path / "summary.json", summary)
        self._end_tracking(summary)

    def close(self) -> None:
        """Close the logs; others may open the run from here on."""
        self._end_tracking(None)
        self._opened.close()

    def _local_logs(self, path: Location) -> Path:
        """A folder for the logs of a run at a URL, with the trackers' ids of earlier parts of it."""
        folder = Path(self._opened.enter_context(TemporaryDirectory())) / path.name
        folder.mkdir()
        if is_file(path / _TRACKERS):
            (folder / _TRACKERS).write_bytes(read_file(path / _TRACKERS))
        return folder

    def _copy_logs(self) -> None:
        """Copy the logs of a run at a URL, which are written in a local folder."""
        if self._logs != self.path:
            self._events.flush()
            for file in self._logs.iterdir():
                _write(self.path / file.name, file.read_bytes())

    def _follow(self, trackers: Sequence[Tracker], config: Mapping[str, Any]) -> None:
        for tracker in trackers:
            tracker.start(self._logs, config)
            self._started.append(tracker)

    def _end_tracking(self, summary: Mapping[str, Any] | None) -> None:
        while self._started:
            self._started.pop().finish(summary)

    def _open_logs(self, history: Sequence[Mapping[str, Any]]) -> None:
        with _writing(self.path):
            lines = "".join(json.dumps(metrics) + "\n" for metrics in history)
            write_durably(self._logs / "metrics.jsonl", lines.encode())
            metrics = (self._logs / "metrics.jsonl").open("a", encoding="utf-8")
            self._metrics = self._opened.enter_context(metrics)
            self._events = SummaryWriter(str(self._logs), purge_step=len(history) + 1 if history else None)
            self._opened.callback(self._events.close)


def _require_new(path: Location) -> None:
    """Raise RunError for a folder that holds more than what a run leaves that was killed while it started."""
    with _writing(path):
        names = names_in(path)
    left = ("environment.json", _PROBE, LOCK)
    if any(name not in left and TEMPORARY not in name for name in names):
        raise RunError(
            f"{path}: the folder is not empty and holds no run that could be continued; choose another --out"
        )


def is_run(path: Location) -> bool:
    """Whether a run was started in this folder."""
    return is_file(path / "config.json")


def read_config(path: Location) -> dict[str, Any]:
    """The config of a run. Raises RunError if `path` is not a run directory."""
    config: dict[str, Any] | None = _load(path / "config.json", json.loads)
    if config is None:
        require_bucket(path)
        raise RunError(
            f"{path}: is not a run, it has no config.json; give the folder that sskt train printed"
        )
    return config


def read_paths(path: Location) -> dict[str, Any]:
    """Where a run found its data and stores, as text: data_dir, cache_dir and weights; in runs since those
    are recorded, target and sources too.
    """
    try:
        paths: dict[str, Any] = json.loads(read_file(path / "environment.json"))["places"]
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise RunError(
            f"{path / 'environment.json'}: cannot be read ({error}); say --data-dir and --cache-dir "
            f"yourself, and --target, --weights and --source if they are needed"
        ) from error
    return paths


def read_checkpoint(path: Location) -> dict[str, Any] | None:
    """The state in last.pt; None if the run was stopped before its first checkpoint. RunError if damaged."""
    return _load(
        path / "last.pt",
        lambda content: torch.load(io.BytesIO(content), map_location="cpu", weights_only=True),
    )


def read_probe(path: Location) -> RunProbe | None:
    """The probe that teaches a run; None if there is none. RunError if it is damaged."""
    return _load(path / _PROBE, RunProbe.from_bytes)


def has_student(path: Location) -> bool:
    """Whether the last epoch's student exists, or encoder."""
    return any(is_file(path / _STUDENT_FILES[which]) for which in ("last", "encoder"))


def student_file(path: Location, which: str = "last") -> Location:
    """Where a run's exported student lies, `which` of STUDENTS."""
    return path / _STUDENT_FILES[which]


def read_student(path: Location, which: str = "last") -> dict[str, torch.Tensor]:
    """An exported student's weights, `which` of STUDENTS. RunError if they are missing or damaged, or the
    run's task was a pretext.
    """
    if (config := read_config(path)).get("method") in PRETEXTS:
        raise RunError(
            f"{path}: its task was {config['method']}, and it knows no classes; fine-tune it first with "
            f"`sskt train --method scratch --model {config['model']} --finetune-from {path / ENCODER}`"
        )
    weights = student_file(path, which)
    if (state := _load(weights, load)) is None:
        raise RunError(
            f"{path}: has no {weights.name}, which a run's end writes; continue the run, or have it written "
            f"again, with `sskt train --resume {path}`"
        )
    return state


def read_metrics(path: Location) -> list[dict[str, Any]]:
    """One dict per epoch, in order; none before the first one has ended."""
    return _load(path / "metrics.jsonl", lambda text: [json.loads(line) for line in text.splitlines()]) or []


def read_summary(path: Location) -> dict[str, Any] | None:
    """The summary of a finished run; None for any other."""
    return _load(path / "summary.json", json.loads)


def _load(file: Location, parse: Callable[[bytes], T]) -> T | None:
    """A file of a run, parsed; None if there is none. Raises RunError if it is damaged."""
    try:
        content = read_files([file])[0]
        return None if content is None else parse(content)
    except CacheError:  # an object store that cannot be reached, a folder that cannot be looked into
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise RunError(
            f"{file}: cannot be read ({reason}); restore it, or train again into another folder"
        ) from error


def _write_json(path: Location, content: Mapping[str, Any]) -> None:
    _write(path, (json.dumps(content, indent=2) + "\n").encode())


def _write(path: Location, content: bytes) -> None:
    with _writing(path):
        write_durably(path, content)


@contextmanager
def _writing(path: Location) -> Iterator[None]:
    """Turn errors of a full or read-only disk into RunError."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error.strerror or error}); make room or choose another --out"
        ) from error
