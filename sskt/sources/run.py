"""A student of ours as a source: run:FOLDER, the folder that `sskt train` wrote.

It looks at a target's own pictures as it did while it trained, without the upsampling that other sources get.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from sskt.checkpoints import read_checkpoint
from sskt.errors import SourceError
from sskt.students import BACKBONES, CLIP_BACKBONES
from sskt.students.student import build_student
from sskt.weights import load_into

WEIGHTS = "student.safetensors"


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run's config says of its student."""

    model: str
    classes: tuple[str, ...]
    clip_mean: str  # what a 3D ResNet takes off

    @property
    def n_classes(self) -> int:
        """Of its logits."""
        return len(self.classes)

    @property
    def reads_clips(self) -> bool:
        """Whether it reads (N, 3, D, H, W)."""
        return self.model in CLIP_BACKBONES


def read_trained(folder: Path) -> Trained:
    """Raises SourceError if `folder` is no run, or its student a network that was not ours."""
    config = folder / "config.json"
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
        classes = tuple(map(str, found["classes"]))
        trained = Trained(str(found["model"]), classes, found.get("clip_mean", "kinetics"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"{folder}: is no run ({type(error).__name__}: {error}); give the folder that sskt train printed"
        ) from None
    if trained.model not in BACKBONES:
        raise SourceError(f"{folder}: its student is {trained.model}; export it and name it program:FILE.pt2")
    return trained


class Predictor(nn.Module):
    """A run's student: normalised pictures or clips to logits of its own classes."""

    def __init__(self, folder: Path) -> None:
        """Raises SourceError if the run did not come to its end, or its weights are damaged."""
        super().__init__()
        trained = read_trained(folder)
        if not (folder / WEIGHTS).is_file():
            raise SourceError(
                f"{folder}: has no {WEIGHTS}, the run did not come to its end; `sskt train --resume {folder}`"
            )
        self.student = build_student(trained.model, trained.n_classes, {}, transfer_module=False)
        load_into(
            self.student,
            read_checkpoint(folder / WEIGHTS),
            task="its run",
            n_classes=trained.n_classes,
            remedy="config.json beside it says what it should be; restore both from one run",
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, n_classes)."""
        return self.student.predict(x)
