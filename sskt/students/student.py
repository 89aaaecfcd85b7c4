"""The target network: a backbone, its primary head, and one auxiliary head per source (SSKT eq. 1, 5, 6, 7).

Only backbone and primary head remain after training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from torch import Tensor, nn

from sskt.errors import SettingError
from sskt.students.backbone import Backbone, Features
from sskt.students.initialise import initialise_auxiliary, initialise_head
from sskt.students.registry import build_backbone
from sskt.students.transfer import TransferModule

AUXILIARY_HEADS = ("linear", "mlp")
_AUXILIARY = "auxiliary."


class Student(nn.Module):
    """Backbone, primary head and auxiliary heads; inputs are normalised float (N, 3, H, W), or
    (N, 3, D, H, W) if the backbone reads clips.

    `source_classes` maps a source's name to its number of classes. With `transfer_module` each source has its
    own transfer module, otherwise a Linear on the pooled last feature, which the primary head reads too.
    Backbone and primary head are created first: for one random seed they start alike with any sources or
    none.

    `aux_head` is one of AUXILIARY_HEADS: "mlp" puts a hidden layer as wide as the pooled feature, with ReLU,
    before that Linear. `init` is one of `sskt.students.initialise.INITS`. `dropout` is the rate on the pooled
    features before the primary head in training.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int,
        source_classes: Mapping[str, int],
        transfer_module: bool,
        *,
        init: str = "torch",
        dropout: float = 0.0,
        aux_head: str = "linear",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = dropout
        self.head = nn.Linear(backbone.n_features, n_classes)
        if init == "released":
            initialise_head(self.head, backbone)
        self.source_names = tuple(source_classes)
        self._frozen: list[nn.Module] = []
        self.transfer_module = transfer_module
        # a list, since source names hold dots and colons, which module names must not
        self.auxiliary = nn.ModuleList(
            TransferModule(
                backbone.block_channels, backbone.transfer_width, n, reads_clips=backbone.reads_clips
            )
            if transfer_module
            else _vector_head(backbone.n_features, n, aux_head)
            for n in source_classes.values()
        )
        if init == "released":
            initialise_auxiliary(self.auxiliary, backbone)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Primary logits (N, n_classes) and each source's auxiliary logits (N, K)."""
        features, logits = self.features_and_logits(x)
        heads = zip(self.source_names, self.auxiliary, strict=True)
        head_input = features.blocks if self.transfer_module else features.pooled
        auxiliary = {name: head(head_input) for name, head in heads}
        return logits, auxiliary

    def features_and_logits(self, x: Tensor) -> tuple[Features, Tensor]:
        """The backbone's features and the primary logits (N, n_classes)."""
        features = self.backbone(x)
        return features, self._primary(features.pooled)

    def predict(self, x: Tensor) -> Tensor:
        """Only the primary logits (N, n_classes)."""
        return self.features_and_logits(x)[1]

    def _primary(self, pooled: Tensor) -> Tensor:
        if self.training and self.dropout:
            pooled = nn.functional.dropout(pooled, self.dropout)
        logits: Tensor = self.head(pooled)
        return logits

    def exported_state(self) -> dict[str, Tensor]:
        """The state dict without auxiliary heads, which a student built without sources loads strictly."""
        return {key: value for key, value in self.state_dict().items() if not key.startswith(_AUXILIARY)}

    def freeze_until(self, block: str) -> None:
        """Freeze every part of the backbone before `block`: no gradient, batch norms in eval mode.

        `block` is the name of a child of the backbone, or of the network that it wraps ("layer4" corresponds
        to ft_begin_index 4), or "head" for the whole backbone. Departs from the released code, whose
        ft_begin_index also sets the auxiliary heads' learning rate to 0 and leaves the batch norms of frozen
        layers in train mode; ours trains the heads and freezes those norms. Raises RunError for another name.
        """
        network = self.backbone.network()
        children = dict(network.named_children())
        if block != "head" and block not in children:
            known = ", ".join([*children, "head"])
            raise SettingError("freeze_until", f"is {block!r}, expected one of {known}")
        if block != next(iter(children), "head"):
            for weight in network.parameters(recurse=False):  # position embeddings
                weight.requires_grad = False
        for name, child in children.items():
            if name == block:
                break
            self._frozen.append(child.requires_grad_(requires_grad=False))
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """See `torch.nn.Module.train`; frozen parts stay in eval mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


def _vector_head(n_features: int, n: int, kind: str) -> nn.Module:
    """From the pooled feature (N, n_features) to a source's (N, n)."""
    linear = nn.Linear(n_features, n)
    return linear if kind == "linear" else nn.Sequential(nn.Linear(n_features, n_features), nn.ReLU(), linear)


def build_student(
    model: str, n_classes: int, source_classes: Mapping[str, int], transfer_module: bool
) -> Student:
    """Build a student with fresh weights from torch's global generator. Raises RunError for an unknown
    model.
    """
    return Student(build_backbone(model), n_classes, source_classes, transfer_module)
