"""run:FOLDER, a student of ours: the folder that `sskt train` wrote.

It sees a target's own images as it did in training, without the upsampling that other sources get.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sskt.checkpoints import read_checkpoint
from sskt.errors import RunError, SourceError
from sskt.sanity import LARGEST_LOGIT, has_settled
from sskt.sources.contract import LOGITS, Contract
from sskt.sources.output_rows import OwnNetwork
from sskt.sources.source import (
    LOGITS_OUTPUT,
    MAP,
    POOLED,
    Kind,
    Source,
    SourceSpec,
    rest_path,
    weights_digest,
)
from sskt.students import (
    PRETEXTS,
    Features,
    Student,
    build_backbone,
    is_built_by_name,
    normalisation_of,
    reads_clips,
    sizes_seen,
    source_sha256,
)
from sskt.weights import load_into

_CONFIG, _WEIGHTS = "config.json", "student.safetensors"


class RunKind(Kind):
    """Students that `sskt train` wrote; if a folder is gone, only its name is known."""

    prefix, forms, weights_note = "run", ("run:FOLDER",), "a student of yours"
    is_path = must_be_named = sees_target_size = True
    files, outputs = (_CONFIG, _WEIGHTS), (LOGITS_OUTPUT, POOLED, MAP)

    def parse(self, name: str) -> SourceSpec:
        """See `Kind.parse`; reads the run's config."""
        folder = rest_path(name)
        name = self.name_at(folder.name)
        if not (folder / _CONFIG).is_file():
            return self.unopened(name, "")
        trained = read_trained(folder)
        try:
            (mean, std), clips = trained.normalisation, trained.reads_clips
        except RunError as error:  # of a function that makes it
            raise SourceError(f"{folder}: {error}") from error
        return SourceSpec(
            name,
            task="run",
            architecture=trained.model,
            n_classes=trained.n_classes,
            mean=mean,
            std=std,
            reads_clips=clips,
            sees_student_frames=trained.sees_frames,
            contract=Contract(mean, std, (0.0, 1.0), "rgb", classes=trained.classes, returns=LOGITS),
        )

    def open(self, name: str, weights: Path, told: Contract) -> Source:
        """See `Kind.open`."""
        spec = self.parse(name).under(told)
        notes = _changes(weights.parent)
        module = Predictor(weights.parent).eval().requires_grad_(False)
        # batch norms that have averaged only a few batches give logits of any size that float16 holds
        largest = LARGEST_LOGIT if has_settled(module) else torch.finfo(torch.float16).max
        return Source(spec, module, weights_digest(weights), weights, notes=notes, largest_logit=largest)

    def weights_path(self, name: str, weights_dir: Path) -> Path:  # noqa: ARG002
        """See `Kind.weights_path`."""
        return rest_path(name) / _WEIGHTS

    def name_by_weights(self, weights: Path | str) -> str:
        """See `Kind.name_by_weights`."""
        return self.name_at(Path(weights).parent)

    def slug(self, name: str) -> str:
        """The folder's name."""
        return rest_path(name).name


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run's config records about its student."""

    model: str
    classes: tuple[str, ...]
    clip_mean: str  # the mean that a 3D ResNet subtracts, one of CLIP_MEANS
    sees_frames: bool = False  # it reads images, and was trained on frames of clips
    sizes: tuple[tuple[int, ...], ...] = ((224, 224),)  # of its inputs, see `build_backbone`
    source_sha256: str | None = None  # of the function that makes it, if one does

    @property
    def n_classes(self) -> int:
        """Number of classes of its logits."""
        return len(self.classes)

    @property
    def reads_clips(self) -> bool:
        """Whether it reads (N, 3, D, H, W)."""
        return reads_clips(self.model, sizes=self.sizes)

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std of pixels in 0..1."""
        return normalisation_of(self.model, clip_mean=self.clip_mean, sizes=self.sizes)


def read_trained(folder: Path) -> Trained:
    """Read a run's config. Raises SourceError if `folder` is not a run, or its student is not one of our
    networks.
    """
    if not (folder / _CONFIG).is_file():
        raise SourceError(
            f"{folder}: is no run, it has no {_CONFIG}; give the folder that sskt train printed"
        )
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        classes = tuple(map(str, config["classes"]))
        clip_mean, frames = config.get("clip_mean", "kinetics"), config.get("student_frames")
        sizes = sizes_seen(config.get("plan", {}), frames)
        source = config.get("model_sha256")
        trained = Trained(str(config["model"]), classes, clip_mean, frames is not None, sizes, source)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"{folder}: is no run ({type(error).__name__}: {error}); give the folder that sskt train printed"
        ) from None
    if (task := config.get("method")) in PRETEXTS:
        raise SourceError(
            f"{folder}: its task was {task}, and it knows no classes; fine-tune it first with `sskt train "
            f"--method scratch --model {trained.model} --finetune-from {folder / 'encoder.safetensors'}`, "
            f"and name that run"
        )
    if not is_built_by_name(trained.model):
        raise SourceError(f"{folder}: its student is {trained.model}; export it and name it program:FILE.pt2")
    return trained


def _changes(folder: Path) -> tuple[str, ...]:
    """A remark if the source of the function that makes a run's student has changed."""
    trained = read_trained(folder)
    if trained.source_sha256 is None or source_sha256(trained.model) == trained.source_sha256:
        return ()
    return (
        (
            f"{folder}: the source of {trained.model} has changed since the run was started; if the network "
            f"computes something else by now, so does this source"
        ),
    )


class Predictor(OwnNetwork):
    """A run's student, from normalised images or clips to logits of its own classes."""

    def __init__(self, folder: Path) -> None:
        """Raises SourceError if the run did not finish, or its weights are damaged."""
        super().__init__()
        trained = read_trained(folder)
        if not (folder / _WEIGHTS).is_file():
            raise SourceError(
                f"{folder}: has no {_WEIGHTS}, the run did not come to its end; "
                f"`sskt train --resume {folder}`"
            )
        backbone = build_backbone(trained.model, sizes=trained.sizes)
        self.student = Student(backbone, trained.n_classes, {}, transfer_module=False)
        load_into(
            self.student,
            read_checkpoint(folder / _WEIGHTS),
            task="its run",
            n_classes=trained.n_classes,
            remedy="config.json beside it says what it should be; restore both from one run",
        )
        self.block_channels, self.n_features = backbone.block_channels, backbone.n_features

    def features_and_logits(self, x: Tensor) -> tuple[Features, Tensor]:
        """See `OwnNetwork.features_and_logits`."""
        features = self.student.backbone(x)
        logits: Tensor = self.student.head(features.pooled)
        return features, logits
