"""A pretrained clip network as a source: one of our backbones with the head that comes with its weights."""

from __future__ import annotations

from torch import Tensor, nn

from sskt.sources.output_rows import OwnNetwork
from sskt.students import TORCH_VIDEO, Features, ResNet3D, TorchVideo, build_backbone


class ClipClassifier(OwnNetwork):
    """Normalised clips (N, 3, D, H, W) to logits (N, n_classes)."""

    def __init__(self, architecture: str, n_classes: int) -> None:
        super().__init__()
        self.backbone = build_backbone(architecture)
        self.fc = nn.Linear(self.backbone.n_features, n_classes)
        self.block_channels, self.n_features = self.backbone.block_channels, self.backbone.n_features

    def features_and_logits(self, x: Tensor) -> tuple[Features, Tensor]:
        """See `OwnNetwork.features_and_logits`."""
        features = self.backbone(x)
        logits: Tensor = self.fc(features.pooled)
        return features, logits


def clip_normalisation(architecture: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of pixels in 0..1 that a clip backbone was trained with."""
    backbone = TorchVideo if architecture in TORCH_VIDEO else ResNet3D
    return backbone.mean, backbone.std


def published_key(key: str) -> str:
    """The name that published files use for a key of a `ClipClassifier`; heads are called `fc` in both."""
    return key.removeprefix("backbone.")
