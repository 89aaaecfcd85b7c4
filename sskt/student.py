"""The target network: a backbone, its primary head, and one auxiliary head per source (SSKT eq. 1, 5, 6, 7).

Only backbone and primary head remain after training.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from sskt.backbones import Backbone, build_backbone
from sskt.transfer import TransferModule

_AUXILIARY = "auxiliary."


class Student(nn.Module):
    """Backbone, primary head and auxiliary heads; inputs are normalised float (N, 3, H, W).

    `source_classes` maps a source's name to its number of classes. With the transfer module each source has
    one of its own, otherwise a Linear on the pooled last feature that the primary head reads too. Backbone
    and primary head are created first: for one random seed they start alike with any sources or none.
    """

    def __init__(
        self, backbone: Backbone, n_classes: int, source_classes: Mapping[str, int], transfer_module: bool
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.n_features, n_classes)
        self.source_names = tuple(source_classes)
        self.transfer_module = transfer_module
        # a list, since names of sources hold dots and colons, which names of modules must not
        self.auxiliary = nn.ModuleList(
            TransferModule(backbone.block_channels, backbone.transfer_width, n)
            if transfer_module
            else nn.Linear(backbone.n_features, n)
            for n in source_classes.values()
        )

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Primary logits (N, n_classes) and each source's auxiliary logits (N, K)."""
        features = self.backbone(x)
        seen = features.blocks if self.transfer_module else features.pooled
        auxiliary = {name: head(seen) for name, head in zip(self.source_names, self.auxiliary, strict=True)}
        return self.head(features.pooled), auxiliary

    def predict(self, x: Tensor) -> Tensor:
        """Primary logits (N, n_classes) alone."""
        logits: Tensor = self.head(self.backbone(x).pooled)
        return logits

    def exported_state(self) -> dict[str, Tensor]:
        """The state dict without auxiliary heads: what a student built with no source loads strictly."""
        return {key: value for key, value in self.state_dict().items() if not key.startswith(_AUXILIARY)}


def build_student(
    model: str, n_classes: int, source_classes: Mapping[str, int], transfer_module: bool
) -> Student:
    """A student with fresh weights from torch's global generator. Raises RunError for an unknown model."""
    return Student(build_backbone(model), n_classes, source_classes, transfer_module)
