"""Start a student from a pretrained network's weights, without its head (SSKT supplement, tables of
fine-tuning). `Student.freeze_until` freezes its first blocks.

The file may be any that `sskt.weights` reads: torchvision's, timm's, a Kinetics checkpoint of
3D-ResNets-PyTorch, or a student of ours.
"""

from __future__ import annotations

from pathlib import Path

from sskt.checkpoints import Checkpoint, read_checkpoint
from sskt.errors import SourceError
from sskt.students.backbone import Backbone
from sskt.students.timm_backbone import TimmBackbone
from sskt.weights import load_into


def load_pretrained(backbone: Backbone, path: Path, model: str) -> tuple[str, ...]:
    """Copy the weights in `path`, except a head's, into `backbone`; `model` names it in messages. Returns
    remarks about what was copied. Position embeddings of timm's are resampled to the student's image size.

    Raises SourceError if the file is missing or damaged, belongs to another architecture, or holds numbers
    that are not finite.
    """
    checkpoint = read_checkpoint(path)
    if isinstance(backbone, TimmBackbone):
        notes = _load_timm(backbone, checkpoint, model)
    else:
        notes = _load(backbone, checkpoint, model)
    for name, weight in backbone.state_dict().items():
        if weight.is_floating_point() and not weight.isfinite().all():
            raise SourceError(
                f"{path}: {name.removeprefix(backbone.own_prefix)} holds numbers that are not finite (NaN or "
                f"infinite), as a diverged training leaves them; give other weights"
            )
    return notes


def _load_timm(backbone: TimmBackbone, checkpoint: Checkpoint, model: str) -> tuple[str, ...]:
    """Load weights for images of the student's size or, resampled, of the size of published ones."""
    try:
        return _load(backbone, checkpoint, model)
    except SourceError:
        published = backbone.at_published_size()
        if published is None:
            raise
    notes = _load(published, checkpoint, model)
    backbone.resample_from(published)
    return notes


def _load(backbone: Backbone, checkpoint: Checkpoint, model: str) -> tuple[str, ...]:
    return load_into(
        backbone,
        checkpoint,
        task=f"the student {model}",
        n_classes=0,
        remedy="give weights of that architecture, or their own with --model",
        leaving=backbone.head_keys,
        published=lambda key: key.removeprefix(backbone.own_prefix),
    )
