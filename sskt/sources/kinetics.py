"""kinetics:ARCHITECTURE, networks for clips, trained on Kinetics-400."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torchvision
from torch import nn

from sskt.checkpoints import Checkpoint
from sskt.normalise import KINETICS_MEAN
from sskt.sources.clip_classifier import ClipClassifier, clip_normalisation, published_key
from sskt.sources.source import SourceSpec
from sskt.sources.torchvision import Published
from sskt.students import KINETICS_BACKBONES, TORCH_VIDEO
from sskt.weights import load_into


class Kinetics(Published):
    """Classifiers of Kinetics-400's 400 actions: torchvision's networks have published weights, 3D ResNets
    need a file.
    """

    prefix, forms = "kinetics", ("kinetics:ARCHITECTURE",)
    n_classes, default_architecture = 400, "resnet3d18"
    publisher = "torchvision KINETICS400_V1"
    reads_clips = True

    def parse(self, name: str) -> SourceSpec:
        """See `Kind.parse`."""
        spec = super().parse(name)
        is_3d_resnet = spec.architecture not in TORCH_VIDEO
        return replace(spec, earlier_mean=KINETICS_MEAN) if is_3d_resnet else spec

    def architectures(self) -> list[str]:
        """Our clip backbones that have such weights."""
        return list(KINETICS_BACKBONES)

    def entry(self, architecture: str) -> Any:
        """KINETICS400_V1."""
        if architecture not in TORCH_VIDEO:
            return None
        return torchvision.models.get_model_weights(architecture)["KINETICS400_V1"]

    def normalisation(self, architecture: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The backbone's own."""
        return clip_normalisation(architecture)

    def network(self, architecture: str) -> nn.Module:
        """See `Published.network`."""
        return ClipClassifier(architecture, self.n_classes)

    def load(self, network: nn.Module, checkpoint: Checkpoint) -> tuple[str, ...]:
        """See `Published.load`; published files name the backbone's keys differently."""
        return load_into(
            network, checkpoint, task=self.prefix, n_classes=self.n_classes, published=published_key
        )
