"""Follow a run that repeats another, and say where the two are not alike."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.train.config import TrainConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RepeatedRun:
    """Follows a run that repeats another (see `pipeline.train.trackers.Tracker`): says where it departs."""

    recorded: Mapping[str, Any]  # the other's config
    file: Path

    def start(self, run: Path, config: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Say which settings and data are not those of the run that is repeated."""
        old = json.loads(json.dumps(TrainConfig.from_dict(dict(self.recorded), str(self.file)).to_dict()))
        now = json.loads(json.dumps(config))
        apart = [
            f"{name} {_brief(now[name])} (not {_brief(old[name])})" for name in now if now[name] != old[name]
        ]
        log.info(
            f"repeats {self.file}" + (f", except: {', '.join(apart)}" if apart else ", in every setting")
        )

    def log_epoch(self, figures: Mapping[str, Any]) -> None:
        """Nothing to do."""

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Nothing to do."""


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
