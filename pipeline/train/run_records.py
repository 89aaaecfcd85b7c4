"""What a run records of its machine, and of its settings for TensorBoard."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from typing import Any

import torch
import torchvision
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from cache import flatten
from sskt.errors import shown

# of a config: what no user chooses, and is long
_NO_SETTINGS = ("classes", "contents", "source_weights", "contracts", "plan", "eval_plan", "plain_layers")


def environment() -> dict[str, Any]:
    """The command, versions and machine, as plain data."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "machine": platform.platform(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def log_settings(events: SummaryWriter, config: Mapping[str, Any]) -> None:
    """Show a run's settings and its metric among TensorBoard's hyper-parameters."""
    plain = {name: value for name, value in config.items() if name not in _NO_SETTINGS}
    named = {k: v if isinstance(v, bool | int | float) else shown(str(v)) for k, v in flatten(plain)}
    metric = "test_map" if config.get("primary_loss") == "bce" else "test_top1"
    experiment, start, _ = hparams(named, {metric: None})  # type: ignore[no-untyped-call]
    writer: Any = events.file_writer
    for part in (experiment, start):
        writer.add_summary(part)
