"""Start a student from a pretrained network's weights, without its head (SSKT supplement, tables of
fine-tuning). `Student.freeze_until` freezes its first blocks.

The file may be any that `sskt.weights` reads: torchvision's, a Kinetics checkpoint of 3D-ResNets-PyTorch, or
a student of ours.
"""

from __future__ import annotations

from pathlib import Path

from sskt.checkpoints import read_checkpoint
from sskt.students.backbone import Backbone
from sskt.weights import load_into


def load_pretrained(backbone: Backbone, path: Path, model: str) -> tuple[str, ...]:
    """Copy the weights in `path`, except a head's, into `backbone`; `model` names it in messages. Returns
    remarks about what was copied.

    Raises SourceError if the file is missing or damaged, or belongs to another architecture.
    """
    return load_into(
        backbone,
        read_checkpoint(path),
        task=f"the student {model}",
        n_classes=0,
        remedy="give weights of that architecture, or their own with --model",
        leaving=backbone.head_keys,
    )
