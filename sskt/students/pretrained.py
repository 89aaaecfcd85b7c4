"""Start a student from a pretrained network (SSKT supplement, tables of fine-tuning): its weights without its
head. `Student.freeze_until` keeps its first blocks as they are.

Files are those of `sskt.weights`: torchvision's, 3D-ResNets-PyTorch's Kinetics checkpoints, or a student of
ours.
"""

from __future__ import annotations

from pathlib import Path

from sskt.checkpoints import read_checkpoint
from sskt.students import Backbone
from sskt.weights import load_into

_HEADS = ("fc.", "classifier.", "head.", "heads.", "last_linear.")  # what is left behind


def load_pretrained(backbone: Backbone, path: Path, model: str) -> tuple[str, ...]:
    """Copy the weights in `path`, but for a head's, into `backbone`; `model` names it in messages. Returns
    what there is to say of what was taken.

    Raises SourceError if the file is missing or damaged, or is of another architecture.
    """
    return load_into(
        backbone,
        read_checkpoint(path),
        task=f"the student {model}",
        n_classes=0,
        remedy="give weights of that architecture, or their own with --model",
        leaving=_HEADS,
    )
