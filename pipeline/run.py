"""A run directory: what was asked, where it ran, what came out (DESIGN promise 7).

config.json, environment.json, metrics.jsonl (a line an epoch), TensorBoard events, last.pt (network, heads
and optimiser), student.safetensors (backbone and primary head alone) and summary.json. Every file but the
logs appears whole or not at all.
"""

from __future__ import annotations

import io
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import load_file, save
from torch.utils.tensorboard import SummaryWriter

from sskt.errors import RunError


class Run:
    """A run directory open for writing."""

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        """Make the directory. Raises RunError if it already holds a run or cannot be written."""
        self.path = path
        with _writing(path):
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise RunError(
                    f"{path}: the folder is not empty; choose another --out, so that no run is overwritten"
                )
            self._metrics = (path / "metrics.jsonl").open("a", encoding="utf-8")
            self._events = SummaryWriter(str(path))
        self._write_json("config.json", config)
        self._write_json("environment.json", _environment())

    def log_epoch(self, metrics: Mapping[str, Any]) -> None:
        """Append one epoch's figures to metrics.jsonl and to the TensorBoard events."""
        with _writing(self.path / "metrics.jsonl"):
            self._metrics.write(json.dumps(metrics) + "\n")
            self._metrics.flush()
        for name, value in metrics.items():
            if isinstance(value, int | float) and name != "epoch":
                self._events.add_scalar(name, value, metrics["epoch"])

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace last.pt by `state`, plain data and tensors that load with `weights_only=True`."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        _write_whole(self.path / "last.pt", buffer.getvalue())

    def save_student(self, state: Mapping[str, torch.Tensor]) -> Path:
        """Write the exported student, which holds no head for a source."""
        path = self.path / "student.safetensors"
        _write_whole(path, save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}))
        return path

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, the mark of a run that came to its end."""
        self._write_json("summary.json", summary)

    def close(self) -> None:
        """Close the logs; the run can be read from here on."""
        self._metrics.close()
        self._events.close()

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        _write_whole(self.path / name, (json.dumps(content, indent=2) + "\n").encode())


def read_config(path: Path) -> dict[str, Any]:
    """The config of a run. Raises RunError if `path` is not a run directory."""
    try:
        config: dict[str, Any] = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(
            f"{path}: is not a run, it has no config.json; give the folder that sskt train printed"
        ) from None
    except (OSError, json.JSONDecodeError) as error:
        raise RunError(
            f"{path / 'config.json'}: cannot be read ({error}); restore the file or train again"
        ) from error
    return config


def read_student(path: Path) -> dict[str, torch.Tensor]:
    """The exported student's weights. Raises RunError if the run has none or the file is damaged."""
    weights = path / "student.safetensors"
    if not weights.is_file():
        raise RunError(f"{path}: has no student.safetensors, the run did not come to its end; train it again")
    try:
        state: dict[str, torch.Tensor] = load_file(weights)
    except Exception as error:
        raise RunError(f"{weights}: cannot be read ({error}); train it again") from error
    return state


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """One dict an epoch, in order."""
    lines = (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def new_run_folder(name: str) -> Path:
    """A fresh default for `--out`: runs/<name>-<time>."""
    return Path("runs") / f"{name}-{datetime.now().astimezone():%Y%m%d-%H%M%S}-{os.getpid()}"


def _write_whole(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    with _writing(path):
        partial.write_bytes(content)
        partial.replace(path)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns a full or read-only disk into a RunError."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error.strerror or error}); make room or choose another --out"
        ) from error


def _environment() -> dict[str, Any]:
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "machine": platform.platform(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
