"""Start a student from a pretrained network (SSKT supplement, tables of fine-tuning): its weights without its
head. `Student.freeze_until` keeps its first blocks as they are.

Files are those of `sskt.weights`: torchvision's, 3D-ResNets-PyTorch's Kinetics checkpoints, or a student of
ours.
"""

from __future__ import annotations

from pathlib import Path

from sskt.backbones import Backbone
from sskt.weights import load_into, read_state

_HEADS = ("fc.", "classifier.", "head.", "last_linear.")  # what is left behind
_OURS = "backbone."  # before every key of an exported student's backbone


def load_pretrained(backbone: Backbone, path: Path, model: str) -> None:
    """Copy the weights in `path`, but for a head's, into `backbone`; `model` names it in messages.

    Raises SourceError if the file is missing or damaged, or is of another architecture.
    """
    state = {
        key.removeprefix(_OURS): value
        for key, value in read_state(path).items()
        if not key.startswith(_HEADS)
    }
    load_into(backbone, state, str(path), task=f"the student {model}", n_classes=0)
