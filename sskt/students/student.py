"""The target network: a backbone, its primary head, and one auxiliary head per source (SSKT eq. 1, 5, 6, 7).

Only backbone and primary head remain after training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sskt.errors import RunError
from sskt.students import Backbone, build_backbone
from sskt.students.initialise import initialise_auxiliary, initialise_head
from sskt.students.transfer import TransferModule

_AUXILIARY = "auxiliary."


class Student(nn.Module):
    """Backbone, primary head and auxiliary heads; inputs are normalised float (N, 3, H, W), or
    (N, 3, D, H, W) where the backbone reads clips.

    `source_classes` maps a source's name to its number of classes. With the transfer module each source has
    one of its own, otherwise a Linear on the pooled last feature that the primary head reads too. Backbone
    and primary head are created first: for one random seed they start alike with any sources or none.

    `init` is one of `sskt.students.initialise.INITS`. `dropout` is the share of the pooled features that the
    primary head does without while it trains.
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
        # a list, since names of sources hold dots and colons, which names of modules must not
        self.auxiliary = nn.ModuleList(
            TransferModule(
                backbone.block_channels, backbone.transfer_width, n, reads_clips=backbone.reads_clips
            )
            if transfer_module
            else nn.Linear(backbone.n_features, n)
            for n in source_classes.values()
        )
        if init == "released":
            initialise_auxiliary(self.auxiliary, backbone)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Primary logits (N, n_classes) and each source's auxiliary logits (N, K)."""
        features = self.backbone(x)
        seen = features.blocks if self.transfer_module else features.pooled
        auxiliary = {name: head(seen) for name, head in zip(self.source_names, self.auxiliary, strict=True)}
        return self._primary(features.pooled), auxiliary

    def predict(self, x: Tensor) -> Tensor:
        """Primary logits (N, n_classes) alone."""
        return self._primary(self.backbone(x).pooled)

    def _primary(self, pooled: Tensor) -> Tensor:
        seen = F.dropout(pooled, self.dropout) if self.training and self.dropout else pooled
        logits: Tensor = self.head(seen)
        return logits

    def exported_state(self) -> dict[str, Tensor]:
        """The state dict without auxiliary heads: what a student built with no source loads strictly."""
        return {key: value for key, value in self.state_dict().items() if not key.startswith(_AUXILIARY)}

    def freeze_until(self, block: str) -> None:
        """Keep every part of the backbone before `block` as it is: no gradient, batch norms in eval mode.

        `block` is a name among the backbone's children ("layer4" stands for ft_begin_index 4), or "head" for
        the whole backbone. Departs from the released code: there ft_begin_index gives the auxiliary heads a
        rate of 0, so that none of them moves, and batch norms of frozen layers stay in train mode; ours
        trains the heads and freezes those norms. Raises RunError for another name.
        """
        children = dict(self.backbone.named_children())
        if block != "head" and block not in children:
            raise RunError(f"--freeze-until is {block!r}, expected one of {', '.join([*children, 'head'])}")
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


def build_student(
    model: str, n_classes: int, source_classes: Mapping[str, int], transfer_module: bool
) -> Student:
    """A student with fresh weights from torch's global generator. Raises RunError for an unknown model."""
    return Student(build_backbone(model), n_classes, source_classes, transfer_module)


def memory_layout(student: Student) -> torch.memory_format:
    """The layout with channels last of this student's inputs and weights."""
    return torch.channels_last_3d if student.backbone.reads_clips else torch.channels_last
